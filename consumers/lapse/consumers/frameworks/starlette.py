"""How is a Starlette application guarded? (FastAPI is one.)

lapse = Lapse("localhost:9092", service="shop", identify=identify)
app = Starlette(routes=[...], lifespan=lapse.lifespan)
lapse.install(app)

Endpoints may be marked: `@background`, `@on_stale("deny")`, `@unguarded` (marks.py). The middleware runs before
routing, so it looks for the endpoint itself; that costs nothing in a process without any mark.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.routing import Match

from lapse.consumers.activity import ActivityPublisher
from lapse.consumers.frameworks.asgi import (
    SCOPE_KEY,
    ActiveSession,
    Identify,
    Identity,
    LapseMiddleware,
    Scope,
    checked_on_stale,
)
from lapse.consumers.frameworks.gate import Gate
from lapse.consumers.frameworks.marks import (
    any_marks,
    background,
    is_background,
    is_unguarded,
    on_stale,
    on_stale_of,
    unguarded,
)
from lapse.consumers.guard import Guard, OnStale

__all__ = ["Lapse", "background", "current_session", "on_stale", "unguarded"]

_VIEW: Final = "lapse.view"


def current_session(connection: HTTPConnection) -> ActiveSession:
    """Return the session of the request, of a WebSocket too.

    Raises:
        HTTPException: 401, the request has no session (identify returned None).
    """
    session = connection.scope.get(SCOPE_KEY)
    if not isinstance(session, ActiveSession):
        raise HTTPException(status_code=401, detail="no session", headers={"www-authenticate": 'Lapse realm="session"'})
    return session


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
        guard, publisher: as given, or made of the other arguments.

    Raises:
        ConfigError: on_stale is neither.
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
        checked_on_stale(on_stale)
        by_itself = on_stale if isinstance(on_stale, str) else "allow"
        self.guard = guard or Guard(bootstrap_servers, service=service, prefix=prefix, on_stale=by_itself)
        self.publisher = publisher or ActivityPublisher(bootstrap_servers, service=service, prefix=prefix)
        self._identify = identify
        self._key = key
        self._on_stale = on_stale
        self._gate = Gate(self.guard, self.publisher, key)

    def install(self, app: Starlette) -> None:
        """Add the middleware. What is added later runs outside of it, and sees unguarded requests."""
        app.add_middleware(
            LapseMiddleware,
            guard=self.guard,
            publisher=self.publisher,
            identify=lambda scope: None if is_unguarded(_view_of(scope)) else self._identify(scope),
            key=self._key,
            on_stale=self._stale,
            background=lambda scope: is_background(_view_of(scope)),
        )

    def started(self, identity: Identity, *, policy: str | None = None) -> str:
        """Tell that a subject logged in, and return the session's reference; more by `publisher.started`."""
        return self._gate.started(identity, policy=policy)

    def closed(self, identity: Identity) -> str:
        """Tell that a subject logged out, and return the session's reference."""
        return self._gate.closed(identity)

    def _stale(self, scope: Scope) -> OnStale | None:
        """Return what the route's mark says, or else the application."""
        marked = on_stale_of(_view_of(scope))
        return marked or (self._on_stale(scope) if callable(self._on_stale) else self._on_stale)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Start and stop publisher and guard: `Starlette(lifespan=lapse.lifespan)`."""
        async with self.publisher, self.guard:
            yield

    def with_lifespan(
        self, inner: Callable[[Starlette], AbstractAsyncContextManager[Any]]
    ) -> Callable[[Starlette], AbstractAsyncContextManager[Any]]:
        """Return a lifespan that is this one around the application's own."""

        @asynccontextmanager
        async def both(app: Starlette) -> AsyncIterator[Any]:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(self.lifespan(app))
                yield await stack.enter_async_context(inner(app))

        return both


def _view_of(scope: Scope) -> object:
    """Return the endpoint that the request goes to, None where there is none or nothing is marked."""
    if not any_marks():
        return None
    if _VIEW not in scope:
        # A copy: whoever matches may leave things in the scope, and the router has yet to match.
        scope[_VIEW] = _endpoint(getattr(scope.get("app"), "routes", ()), dict(scope))
    return scope[_VIEW]


def _endpoint(routes: Iterable[Any], scope: Scope) -> object:
    for route in routes:
        match, found = route.matches(scope)
        if match is not Match.FULL:
            continue
        if "endpoint" in found and not hasattr(route, "routes"):
            return found["endpoint"]
        # FastAPI keeps an included router as one route; each of its own then has the whole path.
        of_router = getattr(route, "effective_route_contexts", None)
        if of_router is not None:
            return _endpoint(of_router(), scope)
        mounted = getattr(route, "starlette_route", None) or route
        return _endpoint(getattr(mounted, "routes", None) or (), {**scope, **found})
    return None
