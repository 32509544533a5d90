"""How is a Litestar application guarded?

app = Litestar([...], plugins=[LapsePlugin("localhost:9092", service="shop", identify=identify)])

@get("/me")
async def me(lapse_session: ActiveSession) -> str:
    return lapse_session.subject

@get("/poll", lapse_background=True)        # no activity; also lapse_unguarded=True, lapse_on_stale="deny"
"""

from contextlib import AbstractAsyncContextManager
from typing import Any, cast

from litestar import Litestar
from litestar.config.app import AppConfig
from litestar.connection import ASGIConnection
from litestar.di import Provide
from litestar.exceptions import NotAuthorizedException
from litestar.middleware import DefineMiddleware
from litestar.plugins import InitPluginProtocol

from lapse.consumers.frameworks.asgi import SCOPE_KEY, ActiveSession, LapseMiddleware, Scope
from lapse.consumers.frameworks.extension import Extension
from lapse.consumers.guard import OnStale

__all__ = ["LapsePlugin", "current_session"]


def current_session(connection: "ASGIConnection[Any, Any, Any, Any]") -> ActiveSession:
    """Return the session of a request or WebSocket.

    Raises:
        NotAuthorizedException: it has no session (identify returned None).
    """
    return _session_of(cast("dict[str, Any]", connection.scope))


def _session_of(scope: dict[str, Any]) -> ActiveSession:
    session = scope.get(SCOPE_KEY)
    if not isinstance(session, ActiveSession):
        raise NotAuthorizedException("no session")
    return session


class LapsePlugin(Extension, InitPluginProtocol):
    """The publisher and the guard of an application, started and stopped with it; its middleware stands first.

    Arguments are those of Extension; a route's mark is its `lapse_on_stale`.
    """

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the middleware, the dependency `lapse_session`, and what starts and stops."""
        middleware = cast("Any", LapseMiddleware)  # Litestar types messages one by one
        app_config.middleware.insert(0, DefineMiddleware(middleware, **self._for_middleware()))
        app_config.lifespan.insert(0, self._lifespan)
        app_config.dependencies["lapse_session"] = Provide(_session_of, sync_to_thread=False)
        return app_config

    def _lifespan(self, app: Litestar) -> AbstractAsyncContextManager[None]:
        return self._running()

    def _is_unguarded(self, scope: Scope) -> bool:
        return bool(_mark(scope, "lapse_unguarded"))

    def _is_background(self, scope: Scope) -> bool:
        return bool(_mark(scope, "lapse_background"))

    def _marked_on_stale(self, scope: Scope) -> OnStale | None:
        marked: OnStale | None = _mark(scope, "lapse_on_stale")
        return marked


def _mark(scope: Scope, name: str) -> Any:
    """Return what the route handler, or what it is in, was given; Litestar routes before its middleware."""
    return scope["route_handler"].opt.get(name)
