"""Whose request is it, by Django's own session?

A login gets an id of its own, kept in the session's data: so every engine will do (a signed cookie has no lasting key),
and one login keeps its reference where Django changes the key. It is no credential: the cookie is.

The applier of Django's stores finds the session by it (django_data.py, ADR 0011).

A login from before Lapse was installed gets its id with its next request; its start is not known.
"""

import secrets
import time
from typing import Any, Final

from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.contrib.auth.models import AnonymousUser

from lapse.consumers.frameworks.django.settings import Enforcement
from lapse.consumers.frameworks.django_data import DATA, ID
from lapse.consumers.frameworks.identity import Identity

__all__ = ["begin", "forget", "may_have_session", "of_session", "told"]

_ID_BYTES: Final = 16


def may_have_session(request: Any) -> bool:
    """Return whether it is worth to load the session."""
    return settings.SESSION_COOKIE_NAME in request.COOKIES


def of_session(request: Any, enforcement: Enforcement) -> Identity | None:
    """Return whose request it is, None if nobody is logged in."""
    if not may_have_session(request) or SESSION_KEY not in request.session:
        return None
    return told(request) or _begin(request, enforcement, request.user, None)


def told(request: Any) -> Identity | None:
    """Return whose login the session tells of, None without one or where it has no id yet."""
    data, subject = request.session.get(DATA), request.session.get(SESSION_KEY)
    if data is None or subject is None:
        return None
    return Identity(data[ID], str(subject), data["tenant"], data["at"])


def begin(request: Any, enforcement: Enforcement, user: Any) -> Identity | None:
    """Note a login in the session, and return it; None where the user did not get into a session."""
    if SESSION_KEY not in request.session:
        return None
    return _begin(request, enforcement, user, int(time.time() * 1000))


def forget(request: Any) -> None:
    """Delete the session, and serve the rest of the request as nobody's."""
    request.session.flush()
    for cached in ("_cached_user", "_acached_user"):
        if hasattr(request, cached):
            delattr(request, cached)
    if hasattr(request, "user"):
        request.user = AnonymousUser()


def _begin(request: Any, enforcement: Enforcement, user: Any, at: int | None) -> Identity | None:
    data = {ID: secrets.token_urlsafe(_ID_BYTES), "tenant": enforcement.tenant(request, user), "at": at}
    request.session[DATA] = data
    return told(request)
