"""A guarded FastAPI service, as a user writes one: `python -m tests.consumers.services KAFKA PREFIX PORT`."""

import asyncio
import sys
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse

from lapse.consumers import Identity
from lapse.consumers.frameworks.asgi import Scope
from lapse.consumers.frameworks.fastapi import CurrentSession, Lapse


def identify(scope: Scope) -> Identity | None:
    """Take session and subject from headers, as a gateway may set them."""
    headers = dict(scope["headers"])
    raw = headers.get(b"x-session")
    return Identity(raw, headers[b"x-subject"].decode()) if raw else None


def service(kafka: str, prefix: str) -> FastAPI:
    """Return the application."""
    lapse = Lapse(kafka, service="shop", identify=identify, prefix=prefix)
    app = FastAPI(lifespan=lapse.lifespan)
    lapse.install(app)

    @app.get("/me")
    async def me(session: CurrentSession) -> str:
        return session.subject

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.post("/login")
    def login(session: CurrentSession) -> None:  # in a thread of its own, as FastAPI does it for `def`
        lapse.publisher.started(session.reference, session.subject, policy="workforce")

    @app.get("/stream")
    async def stream(session: CurrentSession) -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            while True:
                yield b"data: tick\n\n"
                await asyncio.sleep(0.05)

        return StreamingResponse(parts(), media_type="text/event-stream")

    @app.websocket("/ws")
    async def echo(websocket: WebSocket, session: CurrentSession) -> None:
        await websocket.accept()
        try:
            while True:
                await websocket.send_text(f"{session.subject}: {await websocket.receive_text()}")
        except WebSocketDisconnect:
            pass

    return app


if __name__ == "__main__":
    uvicorn.run(service(sys.argv[1], sys.argv[2]), port=int(sys.argv[3]), log_level="warning")
