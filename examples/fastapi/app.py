"""A FastAPI application whose sessions end on time: `uvicorn app:app`."""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI, Response, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse

from lapse.consumers import Identity
from lapse.consumers.frameworks.fastapi import CurrentSession, Lapse, unguarded
from lapse.consumers.frameworks.identity import cookie

logins: dict[str, Identity] = {}  # your session store
KAFKA, PREFIX = os.environ.get("LAPSE_KAFKA", "127.0.0.1:9092"), os.environ.get("LAPSE_PREFIX", "lapse.")
lapse = Lapse(KAFKA, prefix=PREFIX, service="shop", identify=cookie("sid", logins.get))
app = FastAPI(lifespan=lapse.lifespan, default_response_class=PlainTextResponse)
lapse.install(app)


@app.post("/login")
@unguarded  # whoever logs in anew may still send the cookie of the session that ended
async def login(user: str, response: Response) -> str:
    sid = secrets.token_urlsafe(16)
    logins[sid] = Identity(sid, user, started_at=int(time.time() * 1000))
    response.set_cookie("sid", sid, httponly=True)
    return lapse.started(logins[sid], policy="workforce")


@app.get("/me")
async def me(session: CurrentSession) -> str:
    return session.subject


@app.get("/events")
async def events() -> StreamingResponse:
    async def news() -> AsyncIterator[str]:
        while True:
            yield "data: hello\n\n"
            await asyncio.sleep(5)

    return StreamingResponse(news(), media_type="text/event-stream")


@app.websocket("/chat")
async def chat(socket: WebSocket) -> None:
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text)
