"""How is a FastAPI application guarded?

lapse = Lapse("localhost:9092", service="shop", identify=identify)
app = FastAPI(lifespan=lapse.lifespan)
lapse.install(app)

@app.get("/me")
async def me(session: CurrentSession) -> str:
    return session.subject
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException
from starlette.requests import HTTPConnection

from lapse.consumers.activity import ActivityPublisher
from lapse.consumers.frameworks.asgi import SCOPE_KEY, ActiveSession, Identify, LapseMiddleware, Scope
from lapse.consumers.guard import Guard, OnStale

__all__ = ["CurrentSession", "Lapse", "current_session"]


def current_session(connection: HTTPConnection) -> ActiveSession:
    """Return the session of the request, of a WebSocket too.

    Raises:
        HTTPException: 401, the request has no session (identify returned None).
    """
    session = connection.scope.get(SCOPE_KEY)
    if not isinstance(session, ActiveSession):
        raise HTTPException(status_code=401, detail="no session", headers={"www-authenticate": 'Lapse realm="session"'})
    return session


CurrentSession = Annotated[ActiveSession, Depends(current_session)]
"""The type of a parameter that is the request's session, and refuses requests without one."""


class Lapse:
    """The publisher and the guard of an application, started and stopped with it.

    Args:
        bootstrap_servers: of Kafka.
        service: this service's name.
        identify: whose request it is; see LapseMiddleware.
        prefix: of the topics.
        key: of session references, if the estate has one.
        on_stale: what the guard does while it is stale, for all requests or by scope (a function may return None).
            None: what `guard` does by itself, which is to allow unless it was made otherwise.
        guard, publisher: your own, made with other arguments.

    Attributes:
        guard, publisher: for login and logout routes: `lapse.publisher.started(...)`.
    """

    def __init__(
        self,
        bootstrap_servers: str | Sequence[str],
        *,
        service: str,
        identify: Identify,
        prefix: str = "lapse.",
        key: bytes | None = None,
        on_stale: OnStale | Callable[[Scope], OnStale | None] | None = None,
        guard: Guard | None = None,
        publisher: ActivityPublisher | None = None,
    ) -> None:
        by_itself = on_stale if isinstance(on_stale, str) else "allow"
        self.guard = guard or Guard(bootstrap_servers, service=service, prefix=prefix, on_stale=by_itself)
        self.publisher = publisher or ActivityPublisher(bootstrap_servers, service=service, prefix=prefix)
        self._identify = identify
        self._key = key
        self._on_stale = on_stale

    def install(self, app: FastAPI) -> None:
        """Add the middleware. What is added later runs outside of it, and sees unguarded requests."""
        app.add_middleware(
            LapseMiddleware,
            guard=self.guard,
            publisher=self.publisher,
            identify=self._identify,
            key=self._key,
            on_stale=self._on_stale,
        )

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Start and stop publisher and guard: `FastAPI(lifespan=lapse.lifespan)`."""
        async with self.publisher, self.guard:
            yield

    def with_lifespan(
        self, inner: Callable[[FastAPI], AbstractAsyncContextManager[Any]]
    ) -> Callable[[FastAPI], AbstractAsyncContextManager[Any]]:
        """Return a lifespan that is this one around the application's own."""

        @asynccontextmanager
        async def both(app: FastAPI) -> AsyncIterator[Any]:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(self.lifespan(app))
                yield await stack.enter_async_context(inner(app))

        return both
