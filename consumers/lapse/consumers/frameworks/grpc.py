"""How is a gRPC server guarded, one of threads or one of asyncio?

    call -> identify(metadata) -> no session: passes untouched
                               -> refused:    UNAUTHENTICATED, the cause in the trailing metadata
                               -> allowed:    a touch is published, and the method runs

    server = grpc.server(pool, interceptors=[SessionInterceptor(guard=SyncGuard(...), ...)])
    server = grpc.aio.server(interceptors=[AioSessionInterceptor(guard=Guard(...), ...)])

Trailing metadata of a refused call: `lapse-cause` (idle, absolute, revoked, closed, displaced, or `unverified` where
the guard is stale), and where known `lapse-due-at` (epoch ms) and `lapse-ending`.

A call that streams, in either direction, ends with its session. In asyncio the method is cancelled and the status is
the same UNAUTHENTICATED. A thread cannot be interrupted: nothing is sent after the end, the status is UNAUTHENTICATED
where the method gives or takes a message within CANCEL_AFTER_S, and else the call is cancelled (CANCELLED), which the
method sees by `context.is_active()`. Calls of one request and one response are finished.

Metadata `x-lapse-background: 1` means that the call is no touch; otherwise each message of a client's stream is one.
"""

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Final, Literal, TypeAlias

import grpc
import grpc.aio

from lapse.consumers.activity import ActivityPublisher, SyncActivityPublisher
from lapse.consumers.frameworks.gate import BACKGROUND, Gate
from lapse.consumers.frameworks.identity import ActiveSession, Identity
from lapse.consumers.frameworks.problem import reason
from lapse.consumers.guard import ON_STALE, Decision, Ended, Guard, OnStale, SyncGuard
from lapse.schemas import ConfigError

__all__ = ["CANCEL_AFTER_S", "AioSessionInterceptor", "SessionInterceptor", "current_session"]

CANCEL_AFTER_S: Final = 0.25
"""How long a thread has to come by and say why the stream ends; a revocation is to be felt within a second."""

Metadata: TypeAlias = Mapping[str, str | bytes]
Trailing: TypeAlias = tuple[tuple[str, str], ...]

_current: ContextVar[ActiveSession | None] = ContextVar("lapse_session", default=None)


def current_session() -> ActiveSession | None:
    """Return the session of the call that the caller serves, None if it has none."""
    return _current.get()


class _Rules:
    """What both interceptors are told.

    Raises:
        ConfigError: on_stale is neither.
    """

    def __init__(
        self, gate: Gate, on_stale: OnStale | Mapping[str, OnStale] | None, background: Collection[str]
    ) -> None:
        given = on_stale.values() if isinstance(on_stale, Mapping) else () if on_stale is None else (on_stale,)
        for what in given:
            if what not in ON_STALE:
                raise ConfigError(f"on_stale is {what!r}: allow or deny")
        if isinstance(background, str):
            raise ConfigError(f"background is one string: give a collection of methods, such as {{{background!r}}}")
        self.gate = gate
        self._on_stale = on_stale
        self._background = frozenset(background)

    def check(self, identity: Identity, method: str) -> ActiveSession:
        on_stale = self._on_stale.get(method) if isinstance(self._on_stale, Mapping) else self._on_stale
        return self.gate.check(identity, on_stale)

    def toucher(self, session: ActiveSession, method: str, metadata: Metadata) -> Callable[[], None] | None:
        """Return what tells a touch, None where the call is no activity."""
        if method in self._background or metadata.get(BACKGROUND) in ("1", b"1"):
            return None
        return lambda: self.gate.touch(session)


class SessionInterceptor(grpc.ServerInterceptor):
    """Guards a server of threads.

    Args:
        guard: asked for each call that has a session.
        identify: takes the metadata, its keys in lower case; returns whose call it is or None.
        publisher: tells the touches; None where something else does.
        key: of session references, the estate's, if it has one.
        on_stale: overrides the guard's own, for all methods or by full name (`/package.Service/Method`).
        background: full names of methods whose calls are no activity.

    Raises:
        ConfigError: on_stale or background is none of these.
    """

    def __init__(
        self,
        *,
        guard: SyncGuard,
        identify: Callable[[Metadata], Identity | None],
        publisher: SyncActivityPublisher | None = None,
        key: bytes | None = None,
        on_stale: OnStale | Mapping[str, OnStale] | None = None,
        background: Collection[str] = (),
    ) -> None:
        self._guard = guard
        self._identify = identify
        self._rules = _Rules(Gate(guard, publisher, key), on_stale, background)

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = continuation(handler_call_details)
        if handler is None:  # no such method
            return None
        metadata = _metadata_of(handler_call_details)
        identity = self._identify(metadata)
        if identity is None:
            return handler
        method = handler_call_details.method
        session = self._rules.check(identity, method)
        if not session.decision.allowed:
            return _handler_like(handler, _refusing(session.decision))
        touch = self._rules.toucher(session, method, metadata)
        if touch is not None:
            touch()
        call = _Call(self._guard, session, touch)
        serve = call.stream if handler.response_streaming else call.unary
        return _handler_like(handler, functools.partial(serve, _behaviour_of(handler), handler.request_streaming))


class _Call:
    """One call to a server of threads."""

    def __init__(self, guard: SyncGuard, session: ActiveSession, touch: Callable[[], None] | None) -> None:
        self._guard = guard
        self._session = session
        self._touch = touch
        self._why: Ended | None = None

    def unary(self, behaviour: Callable[..., Any], takes_stream: bool, request: Any, context: Any) -> Any:
        token = _current.set(self._session)
        try:
            if not takes_stream:
                return behaviour(request, context)
            self._watch(context)
            response = behaviour(self._requests(request, context), context)
            self._cut(context)
            return response
        finally:
            _current.reset(token)

    def stream(self, behaviour: Callable[..., Any], takes_stream: bool, request: Any, context: Any) -> Iterator[Any]:
        _current.set(self._session)  # the context is the call's own: it goes with it
        self._watch(context)
        self._cut(context)
        for response in behaviour(self._requests(request, context) if takes_stream else request, context):
            self._cut(context)
            yield response
            self._cut(context)
        self._cut(context)  # also a method that ended by seeing that its call was over

    def _requests(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for request in requests:
            self._cut(context)
            if self._touch is not None:
                self._touch()
            yield request

    def _watch(self, context: Any) -> None:
        def end(ended: Ended) -> None:
            self._why = ended
            # Of no effect on a call that is over by then.
            try:
                asyncio.get_running_loop().call_later(CANCEL_AFTER_S, context.cancel)
            except RuntimeError:  # not the guard's thread: a test's guard, which has none
                threading.Timer(CANCEL_AFTER_S, context.cancel).start()

        session = self._session
        hook = self._guard.on_ended(
            end,
            session.reference,
            subject=session.subject,
            tenant=session.tenant,
            started_at=session.started_at,
        )
        if not context.add_callback(hook.cancel):
            hook.cancel()  # the client has gone before

    def _cut(self, context: Any) -> None:
        if self._why is not None:
            context.set_trailing_metadata(_trailing_of_ended(self._why))
            context.abort(grpc.StatusCode.UNAUTHENTICATED, f"session ended: {self._why.cause.value}")


class AioSessionInterceptor(grpc.aio.ServerInterceptor):
    """Guards a server of asyncio; arguments as for SessionInterceptor, `identify` may be asynchronous.

    A method that is an ordinary function, which such a server runs in a thread, is guarded; its streams are not ended.

    Raises:
        ConfigError: on_stale or background is none of what is allowed.
    """

    def __init__(
        self,
        *,
        guard: Guard,
        identify: Callable[[Metadata], Identity | Awaitable[Identity | None] | None],
        publisher: ActivityPublisher | None = None,
        key: bytes | None = None,
        on_stale: OnStale | Mapping[str, OnStale] | None = None,
        background: Collection[str] = (),
    ) -> None:
        self._guard = guard
        self._identify = identify
        self._rules = _Rules(Gate(guard, publisher, key), on_stale, background)

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        metadata = _metadata_of(handler_call_details)
        found = self._identify(metadata)
        identity = await found if inspect.isawaitable(found) else found
        if identity is None:
            return handler
        method = handler_call_details.method
        session = self._rules.check(identity, method)
        if not session.decision.allowed:
            return _handler_like(handler, _refusing_async(session.decision))
        touch = self._rules.toucher(session, method, metadata)
        if touch is not None:
            touch()
        behaviour = _behaviour_of(handler)
        if not (inspect.iscoroutinefunction(behaviour) or inspect.isasyncgenfunction(behaviour)):
            return handler
        call = _AioCall(self._guard, session, touch, _kind_of(handler))
        return _handler_like(handler, functools.partial(call.serve, behaviour))


class _AioCall:
    """One call to a server of asyncio."""

    def __init__(
        self,
        guard: Guard,
        session: ActiveSession,
        touch: Callable[[], None] | None,
        streams: tuple[bool, bool],
    ) -> None:
        self._guard = guard
        self._session = session
        self._touch = touch
        self._takes_stream, self._gives_stream = streams
        self._why: Ended | None = None
        self._limit: asyncio.Timeout | None = None

    async def serve(self, behaviour: Callable[..., Any], request: Any, context: Any) -> Any:
        """Run the method until it is done or the session has ended; responses of a stream are written, not yielded."""
        _current.set(self._session)  # the task is the call's own
        if not (self._takes_stream or self._gives_stream):
            return await behaviour(request, context)
        session = self._session
        hook = None
        try:
            async with asyncio.timeout(None) as self._limit:
                hook = self._guard.on_ended(
                    self._end,
                    session.reference,
                    subject=session.subject,
                    tenant=session.tenant,
                    started_at=session.started_at,
                )
                return await self._run(behaviour, self._requests(request) if self._takes_stream else request, context)
        except TimeoutError:
            if self._why is None:  # the method's own
                raise
        finally:
            if hook is not None:
                hook.cancel()
        why = f"session ended: {self._why.cause.value}"
        return await context.abort(grpc.StatusCode.UNAUTHENTICATED, why, _trailing_of_ended(self._why))

    async def _run(self, behaviour: Callable[..., Any], request: Any, context: Any) -> Any:
        if not inspect.isasyncgenfunction(behaviour):
            return await behaviour(request, context)
        async for response in behaviour(request, context):
            await context.write(response)
        return None

    async def _requests(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            if self._touch is not None:
                self._touch()
            yield request

    def _end(self, ended: Ended) -> None:
        self._why = ended
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time())


def _metadata_of(details: Any) -> dict[str, str | bytes]:
    return {entry[0]: entry[1] for entry in details.invocation_metadata or ()}


def _kind_of(handler: Any) -> tuple[bool, bool]:
    return bool(handler.request_streaming), bool(handler.response_streaming)


_KINDS: Final[dict[tuple[bool, bool], Literal["unary_unary", "unary_stream", "stream_unary", "stream_stream"]]] = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


def _behaviour_of(handler: Any) -> Callable[..., Any]:
    """Return the method itself."""
    behaviour: Callable[..., Any] = getattr(handler, _KINDS[_kind_of(handler)])
    return behaviour


def _handler_like(handler: Any, behaviour: Callable[..., Any]) -> Any:
    """Return a handler of the same kind with another method."""
    make = getattr(grpc, f"{_KINDS[_kind_of(handler)]}_rpc_method_handler")
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


def _trailing(decision: Decision) -> Trailing:
    return _entries(None if decision.cause is None else decision.cause.value, decision.due_at, decision.ending)


def _trailing_of_ended(ended: Ended) -> Trailing:
    return _entries(ended.cause.value, ended.due_at, ended.ending)


def _entries(cause: str | None, due_at: int | None, ending: str | None) -> Trailing:
    found = {"lapse-cause": cause or "unverified", "lapse-due-at": due_at, "lapse-ending": ending}
    return tuple((name, str(value)) for name, value in found.items() if value is not None)


def _refusing(decision: Decision) -> Callable[[Any, Any], Any]:
    def refuse(request: Any, context: Any) -> Any:
        context.set_trailing_metadata(_trailing(decision))
        context.abort(grpc.StatusCode.UNAUTHENTICATED, reason(decision))

    return refuse


def _refusing_async(decision: Decision) -> Callable[[Any, Any], Awaitable[Any]]:
    async def refuse(request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, reason(decision), _trailing(decision))

    return refuse
