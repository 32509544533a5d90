"""How is a Starlette application guarded? (FastAPI is one.)

lapse = Lapse("localhost:9092", service="shop", identify=identify)
app = Starlette(routes=[...], lifespan=lapse.lifespan)
lapse.install(app)

Endpoints may be marked: `@background`, `@on_stale("deny")`, `@unguarded` (marks.py). The middleware runs before
routing, so it looks for the endpoint itself; that costs nothing in a process without any mark.
"""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.routing import Match

from lapse.consumers.frameworks.asgi import SCOPE_KEY, ActiveSession, LapseMiddleware, Scope
from lapse.consumers.frameworks.extension import Extension
from lapse.consumers.frameworks.marks import (
    any_marks,
    background,
    is_background,
    is_unguarded,
    on_stale,
    on_stale_of,
    unguarded,
)
from lapse.consumers.guard import OnStale

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


class Lapse(Extension):
    """The publisher and the guard of an application, started and stopped with it; arguments are those of Extension."""

    def install(self, app: Starlette) -> None:
        """Add the middleware. What is added later runs outside of it, and sees unguarded requests."""
        app.add_middleware(LapseMiddleware, **self._for_middleware())

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Start and stop publisher and guard: `Starlette(lifespan=lapse.lifespan)`."""
        async with self._running():
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

    def _is_unguarded(self, scope: Scope) -> bool:
        return is_unguarded(_view_of(scope))

    def _is_background(self, scope: Scope) -> bool:
        return is_background(_view_of(scope))

    def _marked_on_stale(self, scope: Scope) -> OnStale | None:
        return on_stale_of(_view_of(scope))


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
