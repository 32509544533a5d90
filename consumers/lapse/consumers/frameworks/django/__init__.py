"""How is a Django project guarded?

INSTALLED_APPS = [..., "lapse.consumers.frameworks.django"]
MIDDLEWARE = [..., "django.contrib.auth.middleware.AuthenticationMiddleware",
              "lapse.consumers.frameworks.django.middleware.LapseMiddleware", ...]
LAPSE = {"KAFKA": "localhost:9092", "SERVICE": "shop"}

    middleware     refuses, touches, ends streams; under WSGI and ASGI
    signals        user_logged_in and user_logged_out are told as started and closed
    sessions       whose request it is, by Django's own session, whatever its engine
    settings       the LAPSE dictionary
"""

from lapse.consumers.frameworks.django.settings import Enforcement, enforcement
from lapse.consumers.frameworks.marks import background, on_stale, unguarded

__all__ = ["Enforcement", "background", "enforcement", "on_stale", "unguarded"]
