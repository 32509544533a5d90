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

from lapse.consumers.frameworks.grpc.calls import current_session
from lapse.consumers.frameworks.grpc.loop import AioSessionInterceptor
from lapse.consumers.frameworks.grpc.threads import CANCEL_AFTER_S, SessionInterceptor

__all__ = ["CANCEL_AFTER_S", "AioSessionInterceptor", "SessionInterceptor", "current_session"]
