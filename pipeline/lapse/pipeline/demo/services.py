"""Which two services do the demo's people use? A shop, where they log in and out, and its billing.

Both are plain FastAPI applications, guarded as any user of the SDK would: `Lapse(...)`, its lifespan, its middleware,
and `CurrentSession` in the routes. What a demo adds is the account of what they let pass (account.py).

    shop      POST /login, POST /logout, GET /items, POST /basket, WebSocket /live (news of the shop)
    billing   GET /invoices, POST /payments, WebSocket /live (news of the account)
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Literal

from fastapi import APIRouter, Depends, FastAPI, Response, WebSocket, WebSocketDisconnect
from pydantic import BaseModel

from lapse.consumers import ActivityPublisher, Guard, Identity, session_reference
from lapse.consumers.frameworks.fastapi import CurrentSession, Lapse
from lapse.pipeline.demo.account import Account
from lapse.pipeline.demo.login_cookie import COOKIE, new_identity, opened, sealed

__all__ = ["SERVICES", "Credentials", "ServiceName", "ServiceTask", "build_app"]

ServiceName = Literal["shop", "billing"]
SERVICES: Final[tuple[ServiceName, ...]] = ("shop", "billing")

NEWS_INTERVAL_S: Final = 0.5
"""Each open WebSocket gets a message so often, whether or not its user does anything: one that stayed open after the
session's end would show in the account within a second. 30 of them cost 60 messages a second."""

TOUCH_INTERVAL_MS: Final = 1_000
"""Plus the publishing delay it must stay below the shortest idle timeout; the demo's is 4 s, an estate's is minutes."""


@dataclass(frozen=True, slots=True)
class ServiceTask:
    """What a service's process is told.

    Attributes:
        kafka, prefix: as in the settings.
        account: path of its account.
        cookie_key: hexadecimal, the same for both services; it is told by a pipe, never by an argument.
        session_life_max_ms: as in the settings.
    """

    service: ServiceName
    kafka: str
    prefix: str
    account: str
    cookie_key: str
    session_life_max_ms: int


class Credentials(BaseModel):
    """Who logs in. The demo's shop takes everybody's word."""

    subject: str
    tenant: str


def build_app(task: ServiceTask, account: Account) -> FastAPI:
    """Return the service's application."""
    key = bytes.fromhex(task.cookie_key)
    lapse = Lapse(
        task.kafka,
        service=task.service,
        identify=lambda scope: _identify(scope, key),
        guard=Guard(task.kafka, service=task.service, prefix=task.prefix, session_life_max_ms=task.session_life_max_ms),
        publisher=ActivityPublisher(
            task.kafka, service=task.service, prefix=task.prefix, touch_interval_ms=TOUCH_INTERVAL_MS
        ),
    )
    lapse.guard.on_ended(lambda ended: account.refuses(ended.session))
    app = FastAPI(title=task.service, lifespan=lapse.lifespan, openapi_url=None)

    def note(session: CurrentSession) -> None:
        account.passed(session.reference)

    guarded = APIRouter(dependencies=[Depends(note)])
    if task.service == "shop":
        _shop(app, guarded, lapse, key)
    else:
        _billing(guarded)
    _live(guarded, account)
    app.include_router(guarded)
    lapse.install(app)
    return app


def _identify(scope: Any, key: bytes) -> Identity | None:
    for name, value in scope["headers"]:
        if name == b"cookie":
            return opened(value.decode("latin-1"), key)
    return None


def _shop(app: FastAPI, guarded: APIRouter, lapse: Lapse, key: bytes) -> None:
    items = ["bread", "butter", "salt", "tea"]
    baskets: dict[str, int] = {}

    @app.post("/login")
    async def login(credentials: Credentials, response: Response) -> dict[str, str]:
        """Begin a session. The answer names its reference, which is no secret, for the demo's operator."""
        identity = new_identity(credentials.subject, credentials.tenant, time.time_ns() // 1_000_000)
        reference = session_reference(identity.session_id)
        lapse.publisher.started(reference, identity.subject, tenant=identity.tenant)
        response.set_cookie(COOKIE, sealed(identity, key), httponly=True, samesite="lax")
        return {"session": reference}

    @guarded.post("/logout", status_code=HTTPStatus.NO_CONTENT)
    async def logout(session: CurrentSession, response: Response) -> None:
        lapse.publisher.closed(session.reference, session.subject, tenant=session.tenant)
        baskets.pop(session.reference, None)
        response.delete_cookie(COOKIE)

    @guarded.get("/items")
    async def list_items() -> list[str]:
        return items

    @guarded.post("/basket")
    async def add_to_basket(session: CurrentSession) -> dict[str, int]:
        baskets[session.reference] = baskets.get(session.reference, 0) + 1
        return {"items": baskets[session.reference]}

    lapse.guard.on_ended(lambda ended: baskets.pop(ended.session, None))


def _billing(guarded: APIRouter) -> None:
    @guarded.get("/invoices")
    async def list_invoices(session: CurrentSession) -> dict[str, str]:
        return {"subject": session.subject, "open": "none"}

    @guarded.post("/payments")
    async def pay(session: CurrentSession) -> dict[str, str]:
        return {"subject": session.subject, "paid": "yes"}


def _live(guarded: APIRouter, account: Account) -> None:
    @guarded.websocket("/live")
    async def live(socket: WebSocket, session: CurrentSession) -> None:
        """Send news until the user leaves or the session ends; the middleware does the latter."""
        await socket.accept()
        hearing = asyncio.create_task(_hear(socket, account, session.reference))
        try:
            while not hearing.done():
                account.passed(session.reference)
                await socket.send_json({"at": time.time_ns() // 1_000_000})
                await asyncio.wait([hearing], timeout=NEWS_INTERVAL_S)
        except WebSocketDisconnect:
            pass
        finally:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)


async def _hear(socket: WebSocket, account: Account, session: str) -> None:
    """Take what the user says until the user leaves; the middleware publishes each message as a touch."""
    try:
        while True:
            await socket.receive_text()
            account.passed(session)
    except WebSocketDisconnect:
        return
