"""Whose session does a request carry?

What a request carries is what its service will read, and the sidecar cannot know which of several the service takes: a
bearer token beside a cookie, or one cookie twice. So all of them are read, and all must be good; an ended session is
not hidden behind a live one.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from lapse.consumers.sidecar.asked import Headers
from lapse.consumers.sidecar.config import SidecarConfig
from lapse.consumers.sidecar.tokens import RefusedToken, Tokens
from lapse.schemas import session_reference

__all__ = ["BadLogin", "Login", "Logins"]

# Each costs a look-up, a token its verification: a request with more of them is an attempt at something.
_LOGINS_MAX: Final = 8

_NOT_PLAIN: Final = re.compile(rb'[%"\\]')


class BadLogin(Exception):
    """What a request carries is no login; `unverified`: at present nobody can say."""

    def __init__(self, detail: str, *, unverified: bool = False) -> None:
        super().__init__(detail)
        self.unverified = unverified


@dataclass(frozen=True, slots=True)
class Login:
    """A session that a request carries, and what is known of it."""

    reference: str
    subject: str | None
    tenant: str | None
    started_at: int | None


class Logins:
    """Finds the logins of requests.

    Args:
        config: the sidecar's.
        tokens: reads JWTs; None where none are taken.
    """

    def __init__(self, config: SidecarConfig, tokens: Tokens | None) -> None:
        self._config = config
        self._tokens = tokens
        self._cookie = _name(config.cookie)
        self._token_cookie = _name(config.token_cookie)
        self._bearer = config.bearer and tokens is not None
        self._subject = _header(config.subject_header)
        self._tenant = _header(config.tenant_header)
        self._start = _header(config.start_header)

    async def of(self, headers: Headers) -> list[Login]:
        """Return the logins of a request, none of them twice.

        Raises:
            BadLogin: one of them is not good.
        """
        ids: list[bytes] = []
        tokens: list[bytes] = []
        for name, value in headers:
            if name == b"cookie":
                for cookie, text in _cookies(value):
                    if cookie == self._cookie:
                        ids.append(text)
                    elif cookie == self._token_cookie:
                        tokens.append(text)
            elif name == b"authorization" and self._bearer and value[:7].lower() == b"bearer ":
                tokens.append(value[7:].strip())
        if len(ids) + len(tokens) > _LOGINS_MAX:
            raise BadLogin("the request carries too many logins")
        opaque = [self._opaque(session_id, headers) for session_id in dict.fromkeys(ids)]
        return opaque + [await self._told_by(token) for token in dict.fromkeys(tokens)]

    def _opaque(self, value: bytes, headers: Headers) -> Login:
        form = self._config.cookie_form
        session_id = unquote_to_bytes(value) if form == "percent" else value
        if (form == "plain" and _NOT_PLAIN.search(value)) or (form == "percent" and re.search(rb'["\\]', session_id)):
            raise BadLogin("the session cookie has more than one reading")
        return Login(
            session_reference(session_id, self._config.reference_key),
            _text(headers, self._subject),
            _text(headers, self._tenant),
            _instant(headers, self._start),
        )

    async def _told_by(self, token: bytes) -> Login:
        if self._tokens is None:
            raise BadLogin("no tokens are taken here")
        try:
            claims = await self._tokens.read(token.decode("latin-1"))
        except RefusedToken as refused:
            raise BadLogin(str(refused), unverified=refused.unverified) from None
        reference = session_reference(claims.session_id, self._config.reference_key)
        return Login(reference, claims.subject, claims.tenant, claims.started_at)


def _cookies(header: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield names and values; an empty value is no login, but what a logout leaves."""
    for pair in header.split(b";"):
        name, _, value = pair.partition(b"=")
        value = value.strip()
        if value:
            yield name.strip(), value


def _name(name: str | None) -> bytes | None:
    return None if name is None else name.encode("latin-1")


def _header(name: str | None) -> bytes | None:
    return None if name is None else name.lower().encode("latin-1")


def _text(headers: Headers, name: bytes | None) -> str | None:
    """Return what a trusted header says.

    Raises:
        BadLogin: there are two of it: one of them is not the proxy's.
    """
    if name is None:
        return None
    said = [value for header, value in headers if header == name]
    if len(said) > 1:
        raise BadLogin("a trusted header came twice")
    try:
        return said[0].decode("utf-8") or None if said else None
    except UnicodeDecodeError:
        raise BadLogin("a trusted header is no UTF-8") from None


def _instant(headers: Headers, name: bytes | None) -> int | None:
    said = _text(headers, name)
    if said is None:
        return None
    if not said.isdecimal() or not said.isascii() or len(said) > 15:
        raise BadLogin("the start that the proxy says is no instant in epoch ms")
    return int(said)
