"""How is a gRPC server of asyncio guarded? The rules are in the package's docstring."""

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Any

import grpc
import grpc.aio

from lapse.consumers.activity import ActivityPublisher
from lapse.consumers.frameworks.gate import Gate
from lapse.consumers.frameworks.grpc.calls import (
    Metadata,
    Rules,
    behaviour_of,
    current,
    handler_like,
    kind_of,
    metadata_of,
    trailing,
    trailing_of_ended,
)
from lapse.consumers.frameworks.identity import ActiveSession, Identity
from lapse.consumers.frameworks.problem import reason
from lapse.consumers.guard import Decision, Ended, Guard, OnStale

__all__ = ["AioSessionInterceptor"]


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
        self._rules = Rules(Gate(guard, publisher, key), on_stale, background)

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        metadata = metadata_of(handler_call_details)
        found = self._identify(metadata)
        identity = await found if inspect.isawaitable(found) else found
        if identity is None:
            return handler
        session, touch = self._rules.admit(identity, handler_call_details.method, metadata)
        if not session.decision.allowed:
            return handler_like(handler, _refusing(session.decision))
        behaviour = behaviour_of(handler)
        if not (inspect.iscoroutinefunction(behaviour) or inspect.isasyncgenfunction(behaviour)):
            return handler
        call = _Call(self._guard, session, touch, kind_of(handler))
        return handler_like(handler, functools.partial(call.serve, behaviour))


class _Call:
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
        current.set(self._session)  # the task is the call's own
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
        return await context.abort(grpc.StatusCode.UNAUTHENTICATED, why, trailing_of_ended(self._why))

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


def _refusing(decision: Decision) -> Callable[[Any, Any], Awaitable[Any]]:
    async def refuse(request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, reason(decision), trailing(decision))

    return refuse
