"""Which cookies does a header hold, and which session id is in a cookie's value?

The service takes the same header apart, in a way that the sidecar does not know. Cookies stand between semicolons; but
a proxy may have joined two lines by a comma for its question alone (Envoy does, and passes the service both), many
parsers end a cookie at a space, and Python's `strip` takes away what is a space in Latin-1. So names are stripped of
all that, and a cookie that stands behind a comma or a space, or has one in its value, has more than one reading.

An id is taken out of a value as the service's framework does, by form:

    plain          the value; what some would decode is refused
    percent        decoded
    raw            the value, with quotes, backslashes, percent signs and whatever else there is
    connect        `s:id.signature`, percent-encoded (express-session)
    flask-signed   `id.signature` (Flask-Session with SESSION_USE_SIGNER)
    spring         base64 of the id (Spring Session)

Signatures are the service's to verify. A forged one makes no second spelling of an id: the id is taken out of it all
the same, and if its session has ended, the request is refused.
"""

import base64
import re
from collections.abc import Collection, Iterator
from typing import Final
from urllib.parse import unquote_to_bytes

from lapse.consumers.sidecar.config import CookieForm

__all__ = ["BadCookie", "Cookies", "session_id_in"]

# RFC 6265, section 4.1.1, cookie-octet: visible ASCII but for quote, comma, semicolon and backslash.
_OCTETS: Final = re.compile(r"[!#-+\--:<-\[\]-~]+")
_DECODED: Final = frozenset({"percent", "connect"})
_TWO_READINGS: Final = "the session cookie has more than one reading"


class BadCookie(ValueError):
    """A header or a value is not read by everyone in the same way, or not of its form."""


class Cookies:
    """Reads the cookies that are logins.

    Args:
        names: of these cookies.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self._hidden = re.compile(rf"[,\s](?:{'|'.join(map(re.escape, sorted(names)))})\s*=")

    def read(self, header: bytes) -> Iterator[tuple[str, str]]:
        """Yield names and values; an empty value is no login, but what a logout leaves.

        Raises:
            BadCookie: one of them stands where not everyone would find it.
        """
        for pair in header.decode("latin-1").split(";"):
            pair = pair.strip()
            if self._hidden.search(pair):
                raise BadCookie(_TWO_READINGS)
            name, _, value = pair.partition("=")
            name = name.strip()
            if value and name in self._names:
                yield name, value.strip(" \t")


def session_id_in(value: str, form: CookieForm) -> bytes:
    """Return the session id in a cookie's value.

    Raises:
        BadCookie: the value has more than one reading, or is not of this form.
    """
    if form == "raw":
        if re.search(r"[,\s]", value):
            raise BadCookie(_TWO_READINGS)
        return value.encode("latin-1")
    if _OCTETS.fullmatch(value) is None or ("%" in value and form not in _DECODED):
        raise BadCookie(_TWO_READINGS)
    text = unquote_to_bytes(value) if form in _DECODED else value.encode("ascii")
    if form == "percent" and re.search(rb'["\\]', text):
        raise BadCookie(_TWO_READINGS)
    session_id = _unwrapped(text, form)
    if not session_id:
        raise BadCookie(f"the session cookie is not of the form {form}")
    return session_id


def _unwrapped(text: bytes, form: CookieForm) -> bytes:
    """Return what is in the framework's wrapping; nothing where it is not wrapped so."""
    if form == "connect":
        return text[2:].rpartition(b".")[0] if text.startswith(b"s:") else b""
    if form == "flask-signed":
        return text.rpartition(b".")[0]
    if form == "spring":
        try:
            return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
        except ValueError:  # binascii.Error is one
            return b""
    return text
