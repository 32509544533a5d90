"""A Starlette application whose sessions end on time: `uvicorn app:app`."""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from lapse.consumers import Identity
from lapse.consumers.frameworks.identity import cookie
from lapse.consumers.frameworks.starlette import Lapse, current_session, unguarded

logins: dict[str, Identity] = {}  # your session store
KAFKA, PREFIX = os.environ.get("LAPSE_KAFKA", "127.0.0.1:9092"), os.environ.get("LAPSE_PREFIX", "lapse.")
lapse = Lapse(KAFKA, prefix=PREFIX, service="shop", identify=cookie("sid", logins.get))


@unguarded
async def login(request: Request) -> Response:
    sid = secrets.token_urlsafe(16)
    logins[sid] = Identity(sid, request.query_params["user"], started_at=int(time.time() * 1000))
    response = PlainTextResponse(lapse.started(logins[sid], policy="workforce"))
    response.set_cookie("sid", sid, httponly=True)
    return response


async def me(request: Request) -> Response:
    return PlainTextResponse(current_session(request).subject)


async def events(request: Request) -> Response:
    async def news() -> AsyncIterator[str]:
        while True:
            yield "data: hello\n\n"
            await asyncio.sleep(5)

    return StreamingResponse(news(), media_type="text/event-stream")


async def chat(socket: WebSocket) -> None:
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text)


routes = [Route("/login", login, methods=["POST"]), Route("/me", me), Route("/events", events)]
app = Starlette(routes=[*routes, WebSocketRoute("/chat", chat)], lifespan=lapse.lifespan)
lapse.install(app)
