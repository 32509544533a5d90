"""How is an ASGI application guarded? Plain ASGI, http and websocket, whatever framework is inside.

    request -> identify(scope) -> no session: passes untouched
                               -> refused:    401 problem+json; a WebSocket is not accepted
                               -> allowed:    a touch is published, and the application runs

While the application runs, the session's ending closes what stays open. A streaming response ends (or its connection
is broken, where a length was promised), and the application is cancelled, as asyncio.timeout does it. A response that
is not streaming is finished: its request was let pass before the ending. What has no length and sends nothing of its
body is taken for a stream that waits for its first event. A WebSocket is closed with code 4001 at once,
whatever the application is doing, and nothing that the client has sent reaches it any more: it receives a disconnect,
as from a client that has gone, so that its own clean-up runs. What is not done a second later is cancelled.

A request with the header `X-Lapse-Background: 1` (polling) is checked, and is no touch; on a WebSocket's handshake it
means the whole connection. Otherwise each message from the client is a touch.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from inspect import isawaitable
from typing import Any, Final, TypeAlias

from lapse.consumers.activity import ActivityPublisher, SyncActivityPublisher
from lapse.consumers.frameworks.gate import BACKGROUND, Gate
from lapse.consumers.frameworks.identity import ActiveSession, Identity
from lapse.consumers.frameworks.problem import CLOSE_CODE, HEADERS, STATUS, problem, reason
from lapse.consumers.frameworks.streams import watching
from lapse.consumers.guard import ON_STALE, Decision, Ended, Guard, OnStale, SyncGuard
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

_CLEAN_UP_S: Final = 1.0
"""For an application to tidy up after a WebSocket that was closed, such as leaving groups: some round trips."""

_FIRST_PART_S: Final = 0.1
"""For a response without a length, of a session that has ended, to send its body or a part of it. An application that
has its body sends both in one go; a server whose client is slow to take the head may put a pause between them."""

Identify: TypeAlias = Callable[[Scope], Identity | Awaitable[Identity | None] | None]


class LapseMiddleware:
    """Guards an ASGI application.

    Args:
        app: the application.
        guard: asked for each request that has a session; one for threads is asked in a thread.
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
        guard: Guard | SyncGuard,
        identify: Identify,
        publisher: ActivityPublisher | SyncActivityPublisher | None = None,
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
        if isinstance(self._guard, SyncGuard):
            session = await asyncio.to_thread(self._gate.check, identity, on_stale)  # a process's first one waits
        else:
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
        async with _watching(self._guard, session, connection.end):
            await connection.run(self._app, scope)


@asynccontextmanager
async def _watching(
    guard: Guard | SyncGuard, session: ActiveSession, call: Callable[[Ended], None]
) -> AsyncIterator[None]:
    """Call when the session ends, while this is entered."""
    if isinstance(guard, SyncGuard):
        async with watching(guard, session, call):
            yield
        return
    hook = guard.on_ended(
        call,
        session.reference,
        subject=session.subject,
        tenant=session.tenant,
        started_at=session.started_at,
    )
    try:
        yield
    finally:
        hook.cancel()


class _Connection(ABC):
    """What the application talks through, and how it is cut when the session ends.

    Attributes:
        ended: the ending, once it is known.
        cut: whether that has cut it: nothing that the application sends goes out any more.
        limit: the scope in which the application runs, while it does.
    """

    clean_up_s = 0.0
    """How long an application that was cut may take to come to its end by itself."""

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
        """Close it, where the application has not; the session has ended, and the application is done."""

    def was_cut(self) -> None:  # noqa: B027  # there need be nothing to do at once
        """Do what is not to wait for the application."""

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Run the application until it is done or the session has ended."""
        try:
            async with asyncio.timeout(None) as self.limit:
                self.cut_if_open_ended()  # it may have ended since it was asked for
                await app(scope, self.receive, self.send)
        except TimeoutError:
            if not self.cut:
                raise
        finally:
            self.limit = None
        if self.ended is not None:
            await self.close()

    def end(self, ended: Ended) -> None:
        """The guard's hook."""
        self.ended = ended
        self.cut_if_open_ended()

    def cut_if_open_ended(self) -> None:
        if self.ended is not None and self.is_open_ended and not self.cut and self.limit is not None:
            self.cut = True
            self.limit.reschedule(asyncio.get_running_loop().time() + self.clean_up_s)
            self.was_cut()


class _Response(_Connection):
    """An HTTP response."""

    def __init__(self, receive: Receive, send: Send) -> None:
        super().__init__(receive, send)
        self._left: int | None = None  # bytes of the body that were promised and are not sent
        self._waits = False  # whether it has no length, and nothing of its body was sent
        self._streams = False

    @property
    def is_open_ended(self) -> bool:
        return self._streams

    def end(self, ended: Ended) -> None:
        super().end(ended)
        self._expect_body()

    async def send(self, message: Message) -> None:
        if self.cut:
            return
        if message["type"] == "http.response.start":
            self._left = _length(message)
            self._waits = self._left is None
            await self._send(message)
            self._expect_body()
            return
        self._waits = False
        if message["type"] == "http.response.body":
            if self._left is not None:
                self._left -= len(message.get("body", b""))
            self._streams = bool(message.get("more_body", False)) and (self._left is None or self._left > 0)
            self.cut_if_open_ended()  # before this part, if the session has ended before it
        if not self.cut:
            await self._send(message)
            self.cut_if_open_ended()

    def _expect_body(self) -> None:
        if self._waits and self.ended is not None:
            asyncio.get_running_loop().call_later(_FIRST_PART_S, self._take_for_a_stream)

    def _take_for_a_stream(self) -> None:
        if self._waits:
            self._streams = True
            self.cut_if_open_ended()

    async def close(self) -> None:
        if not self.cut:
            return
        if self._left is not None:
            # Fewer bytes than were promised: only a broken connection tells the client so.
            raise ConnectionAbortedError("the session ended while its response was sent")
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


class _WebSocket(_Connection):
    """A WebSocket."""

    clean_up_s = _CLEAN_UP_S

    def __init__(self, receive: Receive, send: Send, touch: Callable[[], None] | None) -> None:
        super().__init__(receive, send)
        self._touch = touch
        self._closed = False
        self._told = False
        self._receiving: asyncio.Future[Message] | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def is_open_ended(self) -> bool:
        return not self._closed

    async def receive(self) -> Message:
        if self.cut:
            return await self._disconnected()
        # A future of its own, since the end must be able to end it. An application that gives up waiting finds the
        # same one the next time, and misses nothing.
        receiving = self._receiving = self._receiving or asyncio.ensure_future(self._receive())
        await asyncio.wait((receiving,))
        self._receiving = None
        if self._closing is not None:  # cut meanwhile, and what the client has sent is of no interest
            return await self._disconnected()
        message = receiving.result()
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

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await super().run(app, scope)
        finally:
            if self._receiving is not None:
                self._receiving.cancel()

    def was_cut(self) -> None:
        message = {"type": "websocket.close", "code": CLOSE_CODE, "reason": self._why}
        self._closing = asyncio.get_running_loop().create_task(self._close(message))
        if self._receiving is not None:
            self._receiving.cancel()

    async def close(self) -> None:
        if self._closing is not None:
            await self._closing

    async def _close(self, message: Message) -> None:
        with suppress(OSError):  # the client has gone by itself
            await self._send(message)

    async def _disconnected(self) -> Message:
        if self._told:
            await asyncio.get_running_loop().create_future()  # nothing comes after it: who waits on is cancelled soon
        self._told = True
        return {"type": "websocket.disconnect", "code": CLOSE_CODE, "reason": self._why}

    @property
    def _why(self) -> str:
        return f"session ended: {self.ended.cause.value}" if self.ended is not None else ""


def checked_on_stale(on_stale: object) -> None:
    """Refuse what is no on_stale.

    Raises:
        ConfigError: it is neither allow nor deny, nor a function.
    """
    if on_stale not in (None, *ON_STALE) and not callable(on_stale):
        raise ConfigError(f"on_stale is {on_stale!r}: allow, deny, or a function of the scope")


def _length(start: Message) -> int | None:
    """Return how long a response's body is to be, or None."""
    for name, value in start.get("headers", ()):
        if name.lower() == b"content-length" and value.isdigit():
            return int(value)
    return None


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
