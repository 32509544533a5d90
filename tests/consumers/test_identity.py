"""Whose request is it? The ready-made ways, on a request of each framework."""

from types import SimpleNamespace
from typing import Any

import pytest

from lapse.consumers import Identity
from lapse.consumers.frameworks.identity import bearer, cookie, header, of_claims

AT_S = 1_800_000_000


def _requests(name: str, value: str) -> list[Any]:
    return [
        {"type": "http", "headers": [(b"other", b"x"), (name.encode(), value.encode())]},
        {f"HTTP_{name.upper()}": value, "wsgi.version": (1, 0)},
        {name: value},
        SimpleNamespace(headers={name: value}),
    ]


@pytest.mark.parametrize("number", range(4))
def test_a_header_is_found_in_a_request_of_each_framework(number: int) -> None:
    request = _requests("authorization", "Bearer t")[number]
    assert header(request, "authorization") == "Bearer t"
    assert header(request, "cookie") is None
    look_up = cookie("sid", lambda value: Identity(value, "u-1"))
    assert look_up(_requests("cookie", 'a=[bad"; sid="x\\"y"; b=2')[number]) == Identity('x"y', "u-1")
    assert look_up(_requests("cookie", "xsid=1; sid=")[number]) is None


def test_cookies_that_http_2_split_are_one_header() -> None:
    scope = {"headers": [(b"cookie", b"a=1"), (b"cookie", b"sid=x")]}
    assert cookie("sid", lambda value: Identity(value, "u-1"))(scope) == Identity("x", "u-1")


@pytest.mark.parametrize(
    ("claims", "options", "found"),
    [
        ({"sid": "s", "sub": "u", "iat": AT_S}, {}, Identity("s", "u")),
        ({"sid": "s", "sub": "u", "iat": AT_S}, {"start": "iat"}, Identity("s", "u", None, AT_S * 1000)),
        ({"sid": "s", "jti": "j", "sub": "u", "auth_time": AT_S}, {}, Identity("s", "u", None, AT_S * 1000)),
        ({"jti": "j", "sub": "u", "iat": AT_S + 0.5}, {}, Identity("j", "u", None, AT_S * 1000 + 500)),
        ({"jti": "j", "sub": "u", "org": "acme", "iat": True}, {"tenant": "org"}, Identity("j", "u", "acme")),
        ({"jti": "j"}, {}, None),
        ({"sub": "u"}, {}, None),
    ],
)
def test_claims_tell_the_session(claims: dict[str, Any], options: dict[str, str], found: Identity | None) -> None:
    assert of_claims(claims, **options) == found


def test_a_token_that_does_not_hold_is_nobody_s() -> None:
    identify = bearer(lambda token: {"jti": "j", "sub": "u"} if token == "right" else None)
    assert identify({"authorization": "bearer right"}) == Identity("j", "u")
    assert identify({"authorization": "Bearer wrong"}) is None
    assert identify({"authorization": "Bearer\tright"}) == identify({"authorization": "BEARER  right "})
    assert identify({"authorization": "Bearer\tright"}) == Identity("j", "u")
    assert identify({"authorization": "Bearer"}) is None
    assert identify({"authorization": "Basic right"}) is None
    assert identify({}) is None
