"""A Django project whose sessions end on time; for gunicorn, uvicorn and WebSockets see docs/frameworks/django.md."""

import os
from pathlib import Path

SECRET_KEY = os.environ["SECRET_KEY"]
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
ROOT_URLCONF = "app"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "/accounts/login/"
USE_TZ = True
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ.get("DATABASE", "db.sqlite3")}}
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [Path(__file__).parent / "templates"],
    }
]
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "lapse.consumers.frameworks.django",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "lapse.consumers.frameworks.django.middleware.LapseMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
]
LAPSE = {
    "KAFKA": os.environ.get("LAPSE_KAFKA", "127.0.0.1:9092"),
    "PREFIX": os.environ.get("LAPSE_PREFIX", "lapse."),
    "SERVICE": "shop",
    "POLICY": "workforce",
}
