"""Whose session does a request carry?

What a request carries is what its service will read, and the sidecar cannot know which of several the service takes: a
bearer token beside a cookie, or one cookie twice. So all of them are read, and all must be good; an ended session is
not hidden behind a live one.
"""

from dataclasses import dataclass
from typing import Final

from lapse.consumers.sidecar.asked import Headers
from lapse.consumers.sidecar.config import SidecarConfig
from lapse.consumers.sidecar.cookies import BadCookie, Cookies, session_id_in
from lapse.consumers.sidecar.tokens import RefusedToken, Tokens
from lapse.schemas import session_reference

__all__ = ["BadLogin", "Login", "Logins"]

# Each costs a look-up, a token its verification: a request with more of them is an attempt at something.
_LOGINS_MAX: Final = 8

_BEARER: Final = "bearer"


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
        names = {name for name in (config.cookie, config.token_cookie) if name is not None}
        self._cookies = Cookies(names) if names else None
        self._bearer = config.bearer and tokens is not None
        self._subject = _header(config.subject_header)
        self._tenant = _header(config.tenant_header)
        self._start = _header(config.start_header)

    async def of(self, headers: Headers) -> list[Login]:
        """Return the logins of a request, none of them twice.

        Raises:
            BadLogin: one of them is not good.
        """
        values: list[str] = []
        tokens: list[str] = []
        try:
            for name, value in headers:
                if name == b"cookie" and self._cookies is not None:
                    for cookie, text in self._cookies.read(value):
                        (values if cookie == self._config.cookie else tokens).append(text)
                elif name == b"authorization" and self._bearer:
                    scheme, *token = value.decode("latin-1").strip().split(None, 1) or [""]
                    if scheme.lower() == _BEARER:
                        tokens.extend(token)
            if len(values) + len(tokens) > _LOGINS_MAX:
                raise BadLogin("the request carries too many logins")
            ids = [session_id_in(value, self._config.cookie_form) for value in dict.fromkeys(values)]
        except BadCookie as bad:
            raise BadLogin(str(bad)) from None
        opaque = [self._opaque(session_id, headers) for session_id in dict.fromkeys(ids)]
        return opaque + [await self._told_by(token) for token in dict.fromkeys(tokens)]

    def _opaque(self, session_id: bytes, headers: Headers) -> Login:
        return Login(
            session_reference(session_id, self._config.reference_key),
            _text(headers, self._subject),
            _text(headers, self._tenant),
            _instant(headers, self._start),
        )

    async def _told_by(self, token: str) -> Login:
        if self._tokens is None:
            raise BadLogin("no tokens are taken here")
        try:
            claims = await self._tokens.read(token)
        except RefusedToken as refused:
            raise BadLogin(str(refused), unverified=refused.unverified) from None
        reference = session_reference(claims.session_id, self._config.reference_key)
        return Login(reference, claims.subject, claims.tenant, claims.started_at)


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
