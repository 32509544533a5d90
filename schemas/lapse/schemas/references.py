"""How is a session known without its secret id?

A session id is a credential: it never enters Kafka, a log or a report. Its reference is

    base64url(SHA-256(id))[:22]              or, where a key is configured,
    base64url(HMAC-SHA-256(key, id))[:22]

22 characters carry 132 bits: among 2**40 sessions two share a reference with probability 2**-53. The key hides which
ids are meant from readers of Kafka even where ids can be guessed; all services of an estate must use the same one.
"""

import base64
import hashlib
import hmac
import re
from typing import Final

from lapse.schemas.errors import ConfigError

__all__ = ["is_session_reference", "session_reference"]

_LENGTH: Final = 22
_REFERENCE: Final = re.compile(rf"[A-Za-z0-9_-]{{{_LENGTH}}}")


def session_reference(session_id: str | bytes, key: bytes | None = None) -> str:
    """Return the reference of a session id.

    Args:
        session_id: the secret, as the cookie or token carries it; text is taken as UTF-8. Not empty.
        key: the estate's key, or None for the plain hash. Not empty.

    Returns:
        22 characters of base64url.

    Raises:
        ValueError: the id is empty, which would make one session of everybody who has none.
        ConfigError: the key is empty, which would look keyed and hide nothing.
    """
    # Lone surrogates reach us from servers that decode headers leniently; they name a session as well as others.
    secret = session_id.encode("utf-8", "surrogatepass") if isinstance(session_id, str) else session_id
    if not secret:
        raise ValueError("session_id is empty: a request without a session has no reference")
    if key is None:
        digest = hashlib.sha256(secret).digest()
    elif key:
        digest = hmac.digest(key, secret, "sha256")
    else:
        raise ConfigError("the key of session references is empty: give None for no key, or at least 16 random bytes")
    return base64.urlsafe_b64encode(digest)[:_LENGTH].decode("ascii")


def is_session_reference(text: str) -> bool:
    """Return whether the text has the form of a reference (a session id of the same form cannot be told apart)."""
    return _REFERENCE.fullmatch(text) is not None
