"""What does `Lapse` make of its arguments? A FastAPI application over the in-memory feed, driven by ASGI messages.

What needs a server (sockets closed, streams ended) is in tests/integration/test_consumers_fastapi.py.
"""

from typing import Any

import pytest
from fastapi import FastAPI

from lapse.consumers import ConfigError, Identity
from lapse.consumers.frameworks.asgi import Scope
from lapse.consumers.frameworks.fastapi import CurrentSession, Lapse
from lapse.consumers.guard import OnStale
from lapse.consumers.testing import MemoryFeed, MemoryPublisher


def _identify(scope: Scope) -> Identity | None:
    return None if scope["path"] == "/public" else Identity("the-cookie", "u-1")


def _application(feed: MemoryFeed, guard_on_stale: OnStale = "allow", **options: Any) -> FastAPI:
    guard = feed.guard(on_stale=guard_on_stale)
    lapse = Lapse(
        "127.0.0.1:1", service="shop", identify=_identify, guard=guard, publisher=MemoryPublisher(), **options
    )
    app = FastAPI()
    lapse.install(app)

    @app.get("/{path}")
    async def me(session: CurrentSession) -> str:
        return session.subject

    return app


async def _status(app: FastAPI, path: str) -> int:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
    await app(scope, receive, send)
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("guard_on_stale", "on_stale", "status"),
    [
        ("allow", None, 200),
        ("deny", None, 401),
        ("allow", "deny", 401),
        ("deny", "allow", 200),
        ("deny", lambda scope: "allow" if scope["path"] == "/me" else None, 200),
        ("deny", lambda scope: None, 401),
    ],
)
async def test_a_guard_of_ones_own_decides_on_staleness_unless_told_otherwise(
    guard_on_stale: OnStale, on_stale: Any, status: int
) -> None:
    feed = MemoryFeed()
    app = _application(feed, guard_on_stale, on_stale=on_stale)
    assert await _status(app, "/me") == 200
    feed.processor_runs = False
    feed.advance(10_000)
    assert await _status(app, "/me") == status


async def test_a_request_of_nobody_gets_no_session() -> None:
    assert await _status(_application(MemoryFeed()), "/public") == 401


async def test_its_own_guard_does_as_it_is_told_outside_of_requests_too() -> None:
    lapse = Lapse("127.0.0.1:1", service="shop", identify=_identify, on_stale="deny")
    assert not lapse.guard.check("x" * 22)  # not started: as stale as can be
    with pytest.raises(ConfigError, match="on_stale"):
        Lapse("127.0.0.1:1", service="shop", identify=_identify, on_stale="denied")  # type: ignore[arg-type]  # tested
