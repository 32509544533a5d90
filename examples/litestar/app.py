"""A Litestar application whose sessions end on time: `uvicorn app:app`."""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from litestar import Litestar, Response, WebSocket, get, post, websocket
from litestar.response import ServerSentEvent

from lapse.consumers import ActiveSession, Identity
from lapse.consumers.frameworks.identity import cookie
from lapse.consumers.frameworks.litestar import LapsePlugin

logins: dict[str, Identity] = {}  # your session store
KAFKA, PREFIX = os.environ.get("LAPSE_KAFKA", "127.0.0.1:9092"), os.environ.get("LAPSE_PREFIX", "lapse.")
lapse = LapsePlugin(KAFKA, prefix=PREFIX, service="shop", identify=cookie("sid", logins.get))


@post("/login", lapse_unguarded=True)
async def login(user: str) -> Response[str]:
    sid = secrets.token_urlsafe(16)
    logins[sid] = Identity(sid, user, started_at=int(time.time() * 1000))
    response = Response(lapse.started(logins[sid], policy="workforce"), media_type="text/plain")
    response.set_cookie("sid", sid, httponly=True)
    return response


@get("/me")
async def me(lapse_session: ActiveSession) -> str:
    return lapse_session.subject


@get("/events")
async def events() -> ServerSentEvent:
    async def news() -> AsyncIterator[str]:
        while True:
            yield "hello"
            await asyncio.sleep(5)

    return ServerSentEvent(news())


@websocket("/chat")
async def chat(socket: WebSocket[Any, Any, Any]) -> None:
    await socket.accept()
    async for text in socket.iter_data("text"):
        await socket.send_text(text)


app = Litestar([login, me, events, chat], plugins=[lapse])
