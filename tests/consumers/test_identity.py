"""Whose request is it? The ready-made ways, on a request of each framework."""

from dataclasses import replace
from inspect import isawaitable
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from lapse.consumers import Identity
from lapse.consumers.frameworks.gate import Gate
from lapse.consumers.frameworks.identity import bearer, cookie, header, of_claims
from lapse.consumers.frameworks.problem import problem
from lapse.consumers.testing import MemoryFeed

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


KNOWN = {name: Identity(name, "u-1") for name in ("mine", "ended", "a%2Fb")}


async def _asynchronous(value: str) -> Identity | None:
    return KNOWN.get(value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("sid=mine", KNOWN["mine"]),
        ("sid=x", None),
        ("sid=x; sid=ended", KNOWN["ended"]),
        ("sid=ended; theme=dark; sid=x", KNOWN["ended"]),
        ("sid=mine; sid=ended", replace(KNOWN["mine"], ambiguous=True)),
        ("sid=mine; sid=mine; sid=", KNOWN["mine"]),
        ("sid=%65nded", KNOWN["ended"]),
        ('sid="%65nded"', KNOWN["ended"]),
        ("sid=mine; sid=%65nded", replace(KNOWN["mine"], ambiguous=True)),
        ("sid=a%2Fb", KNOWN["a%2Fb"]),
        ("; ".join(f"sid={n}" for n in range(7)) + "; sid=ended", KNOWN["ended"]),
        ("; ".join(f"sid={n}" for n in range(9)), Identity("0", "", ambiguous=True)),
    ],
)
async def test_whichever_cookie_the_application_reads_its_session_is_found(text: str, found: Identity | None) -> None:
    assert cookie("sid", KNOWN.get)({"cookie": text}) == found
    answer = cookie("sid", _asynchronous)({"cookie": text})
    assert (await answer if isawaitable(answer) else answer) == found


def test_who_carries_two_sessions_is_refused_and_told_why() -> None:
    feed = MemoryFeed()
    session = Gate(feed.guard()).check(Identity("mine", "u-1", ambiguous=True))
    assert not session.decision.allowed
    told = orjson.loads(problem(session.decision))
    assert (told["type"], told["detail"]) == (
        "urn:lapse:session-unverified",
        "session unverified: the request carries several",
    )
