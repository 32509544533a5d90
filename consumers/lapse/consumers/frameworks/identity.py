"""Whose request is it? What an application tells, and ready-made ways to find out.

An application gives one callable, `identify`, that takes what its framework knows of a request and returns an Identity
or None (nobody's: it passes). For the usual places there are:

    cookie("sid", look_up)     the session id is in a cookie, the rest in your session store
    bearer(decode)             all of it is in a JWT that `decode` has verified
    of_claims(claims)          the same from claims that are there already

The callables they return take a request of any of the frameworks: an ASGI scope, a WSGI environ, a gRPC call's
metadata, or an object with `headers` (Django, Flask, Starlette, Litestar).
"""

from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from http.cookies import SimpleCookie
from inspect import isawaitable
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

from lapse.consumers.guard import Decision

__all__ = ["ActiveSession", "Identity", "bearer", "cookie", "header", "of_claims"]

_BEARER: Final = "bearer"

_VALUES_MAX: Final = 8
"""Values of one cookie that are looked up in the session store: a browser sends a few, where they were set for several
paths or domains. A header of 8 KB could ask for 1,600."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose request it is, as the application knows it.

    Attributes:
        session_id: the raw session id, from the cookie or token. It is hashed here and goes no further.
        started_at: when the session started, epoch ms, if known: revocations of a subject then act in one hop.
        ambiguous: whether the request carries another session besides. It is refused: nobody knows which one of them
            the application reads.
    """

    session_id: str | bytes = field(repr=False)
    subject: str
    tenant: str | None = None
    started_at: int | None = None
    ambiguous: bool = False


@dataclass(frozen=True, slots=True)
class ActiveSession:
    """The session of a request that was let pass; `reference` is what Lapse knows it by."""

    reference: str
    subject: str
    tenant: str | None
    started_at: int | None
    decision: Decision


Found: TypeAlias = Identity | Awaitable[Identity | None] | None


def header(request: Any, name: str) -> str | None:
    """Return a header of a request of any framework, or None.

    Args:
        request: an ASGI scope, a WSGI environ, gRPC metadata as a mapping, or an object with `headers`.
        name: in lower case.
    """
    if not isinstance(request, Mapping):
        found = request.headers.get(name)
    elif isinstance(request.get("headers"), list | tuple):
        wanted = name.encode()
        values = [value for key, value in request["headers"] if key.lower() == wanted]
        # HTTP/2 may split cookies (RFC 9113, section 8.2.3); of any other header the first counts.
        found = b"; ".join(values) if values and name == "cookie" else values[0] if values else None
    else:
        found = request.get(f"HTTP_{name.upper().replace('-', '_')}", request.get(name))
    return found.decode("latin-1") if isinstance(found, bytes) else found


def cookie(name: str, look_up: Callable[[str], Found]) -> Callable[[Any], Found]:
    """Return an identify for a session id in a cookie.

    Of a cookie that is given several times some frameworks read the first, others the last, and some decode percent
    signs. So all are looked up, as they are and decoded. One session may be known among them; with more the identity
    is ambiguous, and so it is with more than 8 different values.

    Args:
        name: of the cookie.
        look_up: takes its value and asks your session store; None where that does not know it. Async for ASGI only.
    """

    def identify(request: Any) -> Found:
        values = _values(header(request, "cookie") or "", name)
        if len(values) > _VALUES_MAX:
            return Identity(values[0], "", ambiguous=True)
        search = _search(look_up, values)
        found: Found = None
        try:
            while not isawaitable(found):
                found = search.send(found)
        except StopIteration as done:
            whose: Identity | None = done.value
            return whose
        return _awaited(search, found)

    return identify


def _search(look_up: Callable[[str], Found], values: list[str]) -> Generator[Found, Identity | None, Identity | None]:
    """Yield what look_up says, be sent what that comes to, and return whose request it is."""
    known: dict[str | bytes, Identity] = {}
    for value in values:
        for reading in dict.fromkeys((value, unquote(value))):
            identity = yield look_up(reading)
            if identity is not None:
                known.setdefault(identity.session_id, identity)
                break
    first = next(iter(known.values()), None)
    return first if first is None or len(known) == 1 else replace(first, ambiguous=True)


async def _awaited(search: Generator[Found, Identity | None, Identity | None], found: Found) -> Identity | None:
    """Go on with a search whose look_up is asynchronous."""
    try:
        while True:
            found = search.send(await found if isawaitable(found) else found)
    except StopIteration as done:
        whose: Identity | None = done.value
        return whose


def bearer(
    decode: Callable[[str], Mapping[str, Any] | None], *, tenant: str | None = None, start: str | None = None
) -> Callable[[Any], Identity | None]:
    """Return an identify for a JWT in `Authorization: Bearer`.

    Args:
        decode: takes the token; returns its claims once it has verified them, None where they do not hold.
        tenant, start: as for `of_claims`.
    """

    def identify(request: Any) -> Identity | None:
        scheme, *token = (header(request, "authorization") or "").strip().split(None, 1) or [""]
        if scheme.lower() != _BEARER or not token:
            return None
        claims = decode(token[0])
        return None if claims is None else of_claims(claims, tenant=tenant, start=start)

    return identify


def of_claims(claims: Mapping[str, Any], *, tenant: str | None = None, start: str | None = None) -> Identity | None:
    """Return whose session the claims of a verified JWT tell of; None without `sub`, or without `sid` and `jti`.

    Args:
        claims: `sid` is the session, or else `jti`, where the token is the session.
        tenant: the claim that names the tenant, if any.
        start: the claim that says when the session started (NumericDate, seconds). By default `auth_time`; without it
            `iat` where the token is the session. A token of a `sid` may be a later one: name `iat` only if it is not.
    """
    sid, subject = claims.get("sid"), claims.get("sub")
    session_id = sid or claims.get("jti")
    if not session_id or not subject:
        return None
    at = claims.get(start) if start else claims.get("auth_time") or (None if sid else claims.get("iat"))
    # bool is an int in Python, and no instant.
    started_at = int(at * 1000) if isinstance(at, int | float) and not isinstance(at, bool) else None
    of_tenant = claims.get(tenant) if tenant else None
    return Identity(str(session_id), str(subject), None if of_tenant is None else str(of_tenant), started_at)


def _values(text: str, name: str) -> list[str]:
    """Return a cookie's different values, in order; unlike SimpleCookie's parser a bad neighbour costs nothing."""
    values: dict[str, None] = {}
    for pair in text.split(";"):
        key, separator, value = pair.partition("=")
        if separator and key.strip() == name:
            values[SimpleCookie().value_decode(value.strip())[0]] = None
    values.pop("", None)
    return list(values)
