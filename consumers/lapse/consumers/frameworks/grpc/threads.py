"""How is a gRPC server of threads guarded? The rules are in the package's docstring."""

import asyncio
import functools
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

import grpc

from lapse.consumers.activity import SyncActivityPublisher
from lapse.consumers.frameworks.gate import Gate
from lapse.consumers.frameworks.grpc.calls import (
    Metadata,
    Rules,
    behaviour_of,
    current,
    handler_like,
    metadata_of,
    trailing,
    trailing_of_ended,
)
from lapse.consumers.frameworks.identity import ActiveSession, Identity
from lapse.consumers.frameworks.problem import reason
from lapse.consumers.guard import Decision, Ended, OnStale, SyncGuard

__all__ = ["CANCEL_AFTER_S", "SessionInterceptor"]

CANCEL_AFTER_S: Final = 0.25
"""How long a thread has to come by and say why the stream ends; a revocation is to be felt within a second."""


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
        self._rules = Rules(Gate(guard, publisher, key), on_stale, background)

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = continuation(handler_call_details)
        if handler is None:  # no such method
            return None
        metadata = metadata_of(handler_call_details)
        identity = self._identify(metadata)
        if identity is None:
            return handler
        session, touch = self._rules.admit(identity, handler_call_details.method, metadata)
        if not session.decision.allowed:
            return handler_like(handler, _refusing(session.decision))
        call = _Call(self._guard, session, touch)
        serve = call.stream if handler.response_streaming else call.unary
        return handler_like(handler, functools.partial(serve, behaviour_of(handler), handler.request_streaming))


class _Call:
    """One call to a server of threads."""

    def __init__(self, guard: SyncGuard, session: ActiveSession, touch: Callable[[], None] | None) -> None:
        self._guard = guard
        self._session = session
        self._touch = touch
        self._why: Ended | None = None

    def unary(self, behaviour: Callable[..., Any], takes_stream: bool, request: Any, context: Any) -> Any:
        token = current.set(self._session)
        try:
            if not takes_stream:
                return behaviour(request, context)
            self._watch(context)
            response = behaviour(self._requests(request, context), context)
            self._cut(context)
            return response
        finally:
            current.reset(token)

    def stream(self, behaviour: Callable[..., Any], takes_stream: bool, request: Any, context: Any) -> Iterator[Any]:
        current.set(self._session)  # the context is the call's own: it goes with it
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
            context.set_trailing_metadata(trailing_of_ended(self._why))
            context.abort(grpc.StatusCode.UNAUTHENTICATED, f"session ended: {self._why.cause.value}")


def _refusing(decision: Decision) -> Callable[[Any, Any], Any]:
    def refuse(request: Any, context: Any) -> Any:
        context.set_trailing_metadata(trailing(decision))
        context.abort(grpc.StatusCode.UNAUTHENTICATED, reason(decision))

    return refuse
