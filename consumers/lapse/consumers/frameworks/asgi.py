"""How is an ASGI application guarded? Plain ASGI, http and websocket, whatever framework is inside.

    request -> identify(scope) -> no session: passes untouched
                               -> refused:    401 problem+json; a WebSocket is not accepted
                               -> allowed:    a touch is published, and the application runs

While the application runs, the session's ending closes what stays open: a WebSocket with code 4001, a streaming
response by its end (or by breaking the connection, where a length was promised). A response that is not streaming is
finished: its request was let pass before the ending. What the application does meanwhile is cancelled, as
asyncio.timeout does it.

A request with the header `X-Lapse-Background: 1` (polling) is checked, and is no touch; on a WebSocket's handshake it
means the whole connection. Otherwise each message from the client is a touch.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, MutableMapping
from inspect import isawaitable
from typing import Any, Final, TypeAlias

from lapse.consumers.activity import ActivityPublisher
from lapse.consumers.frameworks.gate import BACKGROUND, Gate
from lapse.consumers.frameworks.identity import ActiveSession, Identity
from lapse.consumers.frameworks.problem import CLOSE_CODE, HEADERS, STATUS, problem, reason
from lapse.consumers.guard import ON_STALE, Decision, Ended, Guard, OnStale
from lapse.schemas import ConfigError

__all__ = ["SCOPE_KEY", "ActiveSession", "Identity", "LapseMiddleware"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

SCOPE_KEY: Final = "lapse.session"
"""Where the application finds its ActiveSession in the scope."""

_BACKGROUND: Final = BACKGROUND.encode()


Identify: TypeAlias = Callable[[Scope], Identity | Awaitable[Identity | None] | None]


class LapseMiddleware:
    """Guards an ASGI application.

    Args:
        app: the application.
        guard: asked for each request that has a session.
        identify: takes the scope, returns whose request it is or None; sync or async.
        publisher: tells the touches; None where something else does.
        key: of session references, the estate's, if it has one.
        on_stale: overrides the guard's own, for all requests or by scope (a function may return None: the guard's own).
        background: by scope, whether a request is no activity, whatever its headers say.
        touch_on_message: whether each message from a WebSocket's client is a touch.

    Raises:
        ConfigError: on_stale is neither.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        guard: Guard,
        identify: Identify,
        publisher: ActivityPublisher | None = None,
        key: bytes | None = None,
        on_stale: OnStale | Callable[[Scope], OnStale | None] | None = None,
        background: Callable[[Scope], bool] | None = None,
        touch_on_message: bool = True,
    ) -> None:
        checked_on_stale(on_stale)
        self._app = app
        self._guard = guard
        self._identify = identify
        self._gate = Gate(guard, publisher, key)
        self._on_stale = on_stale
        self._background = background
        self._touch_on_message = touch_on_message

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        found = self._identify(scope)
        identity = await found if isawaitable(found) else found
        if identity is None:
            await self._app(scope, receive, send)
            return
        on_stale = self._on_stale(scope) if callable(self._on_stale) else self._on_stale
        session = self._gate.check(identity, on_stale)
        if not session.decision.allowed:
            await _refuse(scope, receive, send, session.decision)
            return
        scope[SCOPE_KEY] = session
        background = _is_background(scope) or (self._background is not None and self._background(scope))
        if not background:
            self._gate.touch(session)
        connection: _Connection
        if scope["type"] == "http":
            connection = _Response(receive, send)
        else:
            touch = None if background or not self._touch_on_message else lambda: self._gate.touch(session)
            connection = _WebSocket(receive, send, touch)
        await self._serve(scope, session, connection)

    async def _serve(self, scope: Scope, session: ActiveSession, connection: "_Connection") -> None:
        """Run the application until it is done or the session has ended."""
        hook = self._guard.on_ended(
            connection.end,
            session.reference,
            subject=session.subject,
            tenant=session.tenant,
            started_at=session.started_at,
        )
        try:
            async with asyncio.timeout(None) as connection.limit:
                await self._app(scope, connection.receive, connection.send)
        except TimeoutError:
            if not connection.cut:
                raise
        finally:
            hook.cancel()
        if connection.ended is not None:
            await connection.close()


class _Connection(ABC):
    """What the application talks through, and how it is cut when the session ends.

    Attributes:
        ended: the ending, once it is known.
        cut: whether the application was cancelled for it.
        limit: the scope in which the application runs.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.ended: Ended | None = None
        self.cut = False
        self.limit: asyncio.Timeout | None = None

    @property
    @abstractmethod
    def is_open_ended(self) -> bool:
        """Return whether it would stay open for as long as the application likes."""

    async def receive(self) -> Message:
        return await self._receive()

    @abstractmethod
    async def send(self, message: Message) -> None:
        """Pass a message of the application on."""

    @abstractmethod
    async def close(self) -> None:
        """Close it, where the application has not."""

    def end(self, ended: Ended) -> None:
        """The guard's hook."""
        self.ended = ended
        self.cut_if_open_ended()

    def cut_if_open_ended(self) -> None:
        if self.ended is not None and self.is_open_ended and not self.cut and self.limit is not None:
            self.cut = True
            self.limit.reschedule(asyncio.get_running_loop().time())


class _Response(_Connection):
    """An HTTP response."""

    def __init__(self, receive: Receive, send: Send) -> None:
        super().__init__(receive, send)
        self._streams = False
        self._complete = False
        self._has_length = False

    @property
    def is_open_ended(self) -> bool:
        return self._streams and not self._complete

    async def send(self, message: Message) -> None:
        if self.cut:
            return
        if message["type"] == "http.response.start":
            self._has_length = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
        elif message["type"] == "http.response.body":
            self._streams = bool(message.get("more_body", False))
            self._complete = not self._streams
        await self._send(message)
        self.cut_if_open_ended()

    async def close(self) -> None:
        if not self.cut or self._complete:
            return
        self._complete = True
        if self._has_length:
            # Fewer bytes than were promised: only a broken connection tells the client so.
            raise ConnectionAbortedError("the session ended while its response was sent")
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


class _WebSocket(_Connection):
    """A WebSocket."""

    def __init__(self, receive: Receive, send: Send, touch: Callable[[], None] | None) -> None:
        super().__init__(receive, send)
        self._touch = touch
        self._closed = False

    @property
    def is_open_ended(self) -> bool:
        return not self._closed

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self._closed = True
        elif message["type"] == "websocket.receive" and self._touch is not None:
            self._touch()
        return message

    async def send(self, message: Message) -> None:
        if self.cut:
            return
        if message["type"] in ("websocket.close", "websocket.http.response.start"):
            self._closed = True
        await self._send(message)

    async def close(self) -> None:
        if self.ended is None or self._closed:
            return
        self._closed = True
        why = f"session ended: {self.ended.cause.value}"
        await self._send({"type": "websocket.close", "code": CLOSE_CODE, "reason": why})


def checked_on_stale(on_stale: object) -> None:
    """Refuse what is no on_stale.

    Raises:
        ConfigError: it is neither allow nor deny, nor a function.
    """
    if on_stale not in (None, *ON_STALE) and not callable(on_stale):
        raise ConfigError(f"on_stale is {on_stale!r}: allow, deny, or a function of the scope")


async def _refuse(scope: Scope, receive: Receive, send: Send, decision: Decision) -> None:
    body = problem(decision)
    headers = [*HEADERS, (b"content-length", str(len(body)).encode())]
    kind = "http.response"
    if scope["type"] == "websocket":
        await receive()  # websocket.connect
        if "websocket.http.response" not in scope.get("extensions", {}):
            # The server answers the handshake with 403; there is no way to say more.
            await send({"type": "websocket.close", "code": CLOSE_CODE, "reason": reason(decision)})
            return
        kind = "websocket.http.response"
    await send({"type": f"{kind}.start", "status": STATUS, "headers": headers})
    await send({"type": f"{kind}.body", "body": body, "more_body": False})


def _is_background(scope: Scope) -> bool:
    return any(name == _BACKGROUND and value.strip() == b"1" for name, value in scope["headers"])
