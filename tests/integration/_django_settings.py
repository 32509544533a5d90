"""The example's project with its sessions elsewhere: in the PostgreSQL of DATABASE_URL, or by SESSION_ENGINE in Redis.

What Lapse is told stays the example's, which is the default in all that concerns the session.
"""

import os
from urllib.parse import urlsplit

from settings import *  # type: ignore[import-not-found]  # noqa: F403  # the example's

SESSION_ENGINE = os.environ.get("SESSION_ENGINE", "django.contrib.sessions.backends.db")
if url := os.environ.get("DATABASE_URL"):
    where = urlsplit(url)
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": where.path[1:],
            "USER": where.username,
            "HOST": where.hostname,
            "PORT": where.port,
        }
    }
if url := os.environ.get("CACHE_URL"):
    CACHES = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": url}}
