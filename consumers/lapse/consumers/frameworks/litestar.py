"""How is a Litestar application guarded?

app = Litestar([...], plugins=[LapsePlugin("localhost:9092", service="shop", identify=identify)])

@get("/me")
async def me(lapse_session: ActiveSession) -> str:
    return lapse_session.subject

@get("/poll", lapse_background=True)        # no activity; also lapse_unguarded=True, lapse_on_stale="deny"
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from litestar import Litestar
from litestar.config.app import AppConfig
from litestar.connection import ASGIConnection
from litestar.di import Provide
from litestar.exceptions import NotAuthorizedException
from litestar.middleware import DefineMiddleware
from litestar.plugins import InitPluginProtocol

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
from lapse.consumers.guard import Guard, OnStale

__all__ = ["LapsePlugin", "current_session"]


def current_session(connection: "ASGIConnection[Any, Any, Any, Any]") -> ActiveSession:
    """Return the session of a request or WebSocket.

    Raises:
        NotAuthorizedException: it has no session (identify returned None).
    """
    session = connection.scope.get(SCOPE_KEY)
    if not isinstance(session, ActiveSession):
        raise NotAuthorizedException("no session")
    return session


async def _provided(scope: dict[str, Any]) -> ActiveSession:
    session = scope.get(SCOPE_KEY)
    if not isinstance(session, ActiveSession):
        raise NotAuthorizedException("no session")
    return session


class LapsePlugin(InitPluginProtocol):
    """The publisher and the guard of an application, started and stopped with it; its middleware stands first.

    Args:
        bootstrap_servers: of Kafka.
        service: this service's name.
        identify: whose request it is; see LapseMiddleware.
        prefix: of the topics.
        key: of session references, if the estate has one.
        on_stale: what the guard does while it is stale, for all requests or by scope; a route's `lapse_on_stale` comes
            first.
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

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the middleware, the dependency `lapse_session`, and what starts and stops."""
        middleware = DefineMiddleware(
            cast("Any", LapseMiddleware),  # Litestar types messages one by one
            guard=self.guard,
            publisher=self.publisher,
            identify=lambda scope: None if _mark(scope, "lapse_unguarded") else self._identify(scope),
            key=self._key,
            on_stale=self._stale,
            background=lambda scope: bool(_mark(scope, "lapse_background")),
        )
        app_config.middleware.insert(0, middleware)
        app_config.lifespan.insert(0, self._lifespan)
        app_config.dependencies["lapse_session"] = Provide(_provided)
        return app_config

    def started(self, identity: Identity, *, policy: str | None = None) -> str:
        """Tell that a subject logged in, and return the session's reference; more by `publisher.started`."""
        return self._gate.started(identity, policy=policy)

    def closed(self, identity: Identity) -> str:
        """Tell that a subject logged out, and return the session's reference."""
        return self._gate.closed(identity)

    @asynccontextmanager
    async def _lifespan(self, app: Litestar) -> AsyncIterator[None]:
        async with self.publisher, self.guard:
            yield

    def _stale(self, scope: Scope) -> OnStale | None:
        marked: OnStale | None = _mark(scope, "lapse_on_stale")
        return marked or (self._on_stale(scope) if callable(self._on_stale) else self._on_stale)


def _mark(scope: Scope, name: str) -> Any:
    """Return what the route handler, or what it is in, was given; Litestar routes before its middleware."""
    return scope["route_handler"].opt.get(name)
