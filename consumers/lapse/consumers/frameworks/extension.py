"""What do the extensions of Starlette and Litestar share? All but how an application takes one and marks its routes."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from lapse.consumers.activity import ActivityPublisher
from lapse.consumers.frameworks.asgi import Identify, Identity, Scope, checked_on_stale
from lapse.consumers.frameworks.gate import Gate
from lapse.consumers.guard import Guard, OnStale

__all__ = ["Extension"]


class Extension(ABC):
    """The publisher and the guard of an application, started and stopped with it.

    Args:
        bootstrap_servers: of Kafka.
        service: this service's name.
        identify: whose request it is; see LapseMiddleware.
        prefix: of the topics.
        key: of session references, if the estate has one.
        on_stale: what the guard does while it is stale, for all requests or by scope (a function may return None); what
            a route is marked with comes first. None: what `guard` does by itself, which is to allow unless it was made
            otherwise.
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

    def started(self, identity: Identity, *, policy: str | None = None) -> str:
        """Tell that a subject logged in, and return the session's reference; more by `publisher.started`."""
        return self._gate.started(identity, policy=policy)

    def closed(self, identity: Identity) -> str:
        """Tell that a subject logged out, and return the session's reference."""
        return self._gate.closed(identity)

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        async with self.publisher, self.guard:
            yield

    def _for_middleware(self) -> dict[str, Any]:
        """Return the arguments of the application's LapseMiddleware."""
        return {
            "guard": self.guard,
            "publisher": self.publisher,
            "identify": lambda scope: None if self._is_unguarded(scope) else self._identify(scope),
            "key": self._key,
            "on_stale": self._stale,
            "background": self._is_background,
        }

    def _stale(self, scope: Scope) -> OnStale | None:
        """Return what the route's mark says, or else the application."""
        return self._marked_on_stale(scope) or (self._on_stale(scope) if callable(self._on_stale) else self._on_stale)

    @abstractmethod
    def _is_unguarded(self, scope: Scope) -> bool:
        """Return whether the route of the request is marked so; and so below."""

    @abstractmethod
    def _is_background(self, scope: Scope) -> bool: ...

    @abstractmethod
    def _marked_on_stale(self, scope: Scope) -> OnStale | None: ...
