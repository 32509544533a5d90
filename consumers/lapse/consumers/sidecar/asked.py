"""What request does the proxy ask about? Each says it in its own way:

    nginx        X-Original-URI, X-Original-Method (ours to set; ingress-nginx: X-Original-URL)
    Traefik      X-Forwarded-Uri, X-Forwarded-Method
    Caddy        X-Forwarded-Uri, X-Forwarded-Method
    Envoy        by its own path, /check/original/path, and its own method

A client can send the headers of a proxy that is not there, and proxies pass on what they do not know. So nothing is
chosen: all of these statements are kept, and whoever asks takes the strictest answer. A client that adds one can only
make its own request's rules stricter. A path that can be read in two ways (an encoded slash, a backslash, a path
parameter) counts as unknown, which is strictest too.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias
from urllib.parse import unquote_to_bytes

__all__ = ["CHECK", "Asked", "Headers", "asked_by", "plain_path"]

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
"""As ASGI has them: names in lower case."""

CHECK: Final = b"/check"

# Statement of the URI -> of the method.
_STATEMENTS: Final = {
    b"x-original-uri": b"x-original-method",
    b"x-original-url": b"x-original-method",
    b"x-forwarded-uri": b"x-forwarded-method",
}
_ORIGIN: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
# An encoded slash, backslash, percent sign, semicolon or control character is one to some servers and text to others.
# Encoded dots are dots to all, but for those that look for dot segments before they decode.
_TWO_WAYS: Final = re.compile(rb"[\\;\x00-\x20]|%(?:2[ef5]|5c|3b|[01][0-9a-f])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Asked:
    """The request that the proxy asks about.

    Attributes:
        paths: its path by each statement, decoded and without dots; None where one cannot be read for certain.
        is_preflight: whether all statements agree that it is a CORS preflight, which never carries credentials.
        is_background: whether it is polling, no touch.
    """

    paths: tuple[str | None, ...]
    is_preflight: bool
    is_background: bool


def asked_by(method: str, raw_path: bytes, headers: Headers) -> Asked:
    """Return what is asked about.

    Args:
        method: the question's own.
        raw_path: the question's own, as it was sent, without the query.
    """
    first: dict[bytes, bytes] = {}
    stated: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        first.setdefault(name, value)
        if name in _STATEMENTS:
            stated.append((name, value))
    paths = [plain_path(value) for _, value in stated]
    methods = [first.get(_STATEMENTS[name], b"") for name, _ in stated]
    suffix = raw_path.removeprefix(CHECK)
    if suffix:
        paths.append(plain_path(suffix))
        methods.append(method.encode("latin-1"))
    return Asked(
        paths=tuple(paths),
        is_preflight=(
            bool(methods)
            and all(each == b"OPTIONS" for each in methods)
            and b"origin" in first
            and b"access-control-request-method" in first
        ),
        is_background=first.get(b"x-lapse-background", b"").strip() == b"1",
    )


def plain_path(target: bytes) -> str | None:
    """Return the path of a request's target, decoded and without dot segments, or None where it is not certain.

    Args:
        target: with or without scheme, authority and query.
    """
    path = re.split(rb"[?#]", _ORIGIN.sub(b"", target, count=1), maxsplit=1)[0]
    if not path.startswith(b"/") or _TWO_WAYS.search(path) is not None:
        return None
    kept: list[bytes] = []
    for segment in unquote_to_bytes(path).split(b"/"):
        if segment == b"..":
            if kept:
                kept.pop()
        elif segment not in (b"", b"."):
            kept.append(segment)
    return "/" + b"/".join(kept).decode("utf-8", "surrogateescape")
