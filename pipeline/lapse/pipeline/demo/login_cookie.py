"""How do two services know whose request it is, without a session store between them?

The cookie carries a random session id, whose it is and when it began, signed by a key that both services have (a
signed token, as a JWT would be):

    base64url(JSON [session id, subject, tenant, started_at]) "." base64url(HMAC-SHA-256)

The id is the secret that Lapse never sees: only its reference leaves the service.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from http.cookies import CookieError, SimpleCookie
from typing import Final

import orjson

from lapse.consumers import Identity

__all__ = ["COOKIE", "new_identity", "opened", "sealed"]

COOKIE: Final = "lapse_demo_session"

_ID_BYTES: Final = 24  # 192 bits: OWASP asks for at least 64 bits of entropy in a session id


def new_identity(subject: str, tenant: str, started_at: int) -> Identity:
    """Return a new login with a random session id; `started_at` is epoch ms."""
    return Identity(secrets.token_urlsafe(_ID_BYTES), subject, tenant, started_at)


def sealed(identity: Identity, key: bytes) -> str:
    """Return the cookie's value."""
    body = _text(orjson.dumps([str(identity.session_id), identity.subject, identity.tenant, identity.started_at]))
    return f"{body}.{_mac(body, key)}"


def opened(header: str, key: bytes) -> Identity | None:
    """Return whose request it is by its Cookie header, or None: no cookie of ours, or not one that we sealed."""
    try:
        cookie = SimpleCookie(header).get(COOKIE)
        body, _, mac = ("" if cookie is None else cookie.value).partition(".")
        if not body or not hmac.compare_digest(mac.encode(), _mac(body, key).encode()):
            return None
        session_id, subject, tenant, started_at = orjson.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (CookieError, ValueError, binascii.Error):
        return None
    return Identity(session_id, subject, tenant, started_at)


def _mac(body: str, key: bytes) -> str:
    return _text(hmac.digest(key, body.encode(), "sha256"))


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
