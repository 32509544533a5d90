"""What do routes of Starlette, FastAPI and Litestar say of themselves? Their test clients; the feed is in memory."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from litestar import Litestar, get
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

import lapse.consumers.frameworks.litestar as of_litestar
from lapse.consumers import ConfigError, Identity, session_reference
from lapse.consumers.frameworks.identity import cookie
from lapse.consumers.frameworks.starlette import Lapse, background, on_stale, unguarded
from lapse.consumers.testing import MemoryFeed, MemoryPublisher
from lapse.schemas import SessionTouched

from tests.consumers.calling import get_of

REFERENCE = session_reference("the-cookie")
IDENTIFY = cookie("sid", lambda sid: Identity(sid, "u-1"))


async def _answer(request: Request) -> Response:
    return PlainTextResponse("fine")


def _views() -> dict[str, Callable[[Request], Any]]:
    async def plain(request: Request) -> Response:
        return PlainTextResponse("fine")

    async def poll(request: Request) -> Response:
        return PlainTextResponse("fine")

    async def strict(request: Request) -> Response:
        return PlainTextResponse("fine")

    async def login(request: Request) -> Response:
        return PlainTextResponse("fine")

    return {"plain": plain, "poll": background(poll), "strict": on_stale("deny")(strict), "login": unguarded(login)}


def _starlette(options: dict[str, Any]) -> Any:
    lapse = Lapse("127.0.0.1:1", service="shop", identify=IDENTIFY, **options)
    routes = [Route(f"/{name}", view) for name, view in _views().items()]
    app = Starlette(routes=[Route("/other", _answer), Mount("/in", routes=routes)])
    lapse.install(app)
    return app


def _fastapi(options: dict[str, Any]) -> Any:
    lapse = Lapse("127.0.0.1:1", service="shop", identify=IDENTIFY, **options)
    app, router = FastAPI(), APIRouter()
    for name, view in _views().items():
        router.get(f"/{name}")(view)
    outer = APIRouter()
    outer.include_router(router, prefix="/in")
    app.include_router(outer)
    lapse.install(app)
    return app


def _litestar(options: dict[str, Any]) -> Any:
    @get("/in/plain")
    async def plain() -> str:
        return "fine"

    @get("/in/poll", lapse_background=True)
    async def poll() -> str:
        return "fine"

    @get("/in/strict", lapse_on_stale="deny")
    async def strict() -> str:
        return "fine"

    @get("/in/login", lapse_unguarded=True)
    async def login() -> str:
        return "fine"

    plugin = of_litestar.LapsePlugin("127.0.0.1:1", service="shop", identify=IDENTIFY, **options)
    return Litestar([plain, poll, strict, login], plugins=[plugin])


@pytest.mark.parametrize("make", [_starlette, _fastapi, _litestar])
async def test_marks_hold_where_the_route_is(make: Callable[[dict[str, Any]], Any]) -> None:
    feed = MemoryFeed()
    publisher = MemoryPublisher(clock=feed.clock)
    app = make({"guard": feed.guard(), "publisher": publisher})

    async def status(name: str) -> int:
        return (await get_of(app, f"/in/{name}", cookie="sid=the-cookie"))[0]

    def touches() -> int:
        return sum(isinstance(activity, SessionTouched) for activity in publisher.take())

    assert [await status(name) for name in ("poll", "login")] == [200, 200]
    assert touches() == 0
    assert [await status(name) for name in ("plain", "strict")] == [200, 200]
    assert touches() == 1
    feed.processor_runs = False
    feed.advance(10_000)
    assert [await status(name) for name in ("plain", "strict", "login")] == [200, 401, 200]
    feed.end(REFERENCE)
    assert [await status(name) for name in ("plain", "poll", "strict", "login")] == [401, 401, 401, 200]


@pytest.mark.parametrize("make", [_starlette, _litestar])
def test_a_wrong_word_is_refused(make: Callable[[dict[str, Any]], Any]) -> None:
    with pytest.raises(ConfigError, match="on_stale"):
        make({"guard": MemoryFeed().guard(), "on_stale": "maybe"})
    with pytest.raises(ConfigError, match="on_stale"):
        on_stale("maybe")  # type: ignore[arg-type]  # a caller without a type checker
