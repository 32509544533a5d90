"""How is a WSGI application guarded, whatever framework is inside, in threads and forked processes?

    request -> identify(environ) -> no session: passes untouched
                                 -> refused:    401 problem+json
                                 -> allowed:    a touch is published, and the application runs

A response that streams (it promises no length, or sends less than it promised in its first part) ends with its session:
the iterator stops. A server's thread that waits in the application's iterator cannot be interrupted; an application
that waits there waits with `environ["lapse.over"]`, a threading.Event that is set when the session ends.

A request with the header `X-Lapse-Background: 1` (polling) is checked, and is no touch.
"""

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from lapse.consumers.activity import SyncActivityPublisher
from lapse.consumers.frameworks.gate import BACKGROUND, Gate
from lapse.consumers.frameworks.identity import Identity, header
from lapse.consumers.frameworks.problem import HEADERS, problem
from lapse.consumers.frameworks.streams import Stream
from lapse.consumers.guard import ON_STALE, Decision, OnStale, SyncGuard
from lapse.schemas import ConfigError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["OVER_KEY", "SESSION_KEY", "LapseMiddleware"]

SESSION_KEY: Final = "lapse.session"
"""Where the application finds its ActiveSession in the environ."""

OVER_KEY: Final = "lapse.over"
"""Where it finds the event that is set when the session ends while its response streams."""

Identify: TypeAlias = "Callable[[WSGIEnvironment], Identity | None]"


class LapseMiddleware:
    """Guards a WSGI application.

    Args:
        app: the application.
        guard: asked for each request that has a session.
        identify: takes the environ, returns whose request it is or None.
        publisher: tells the touches; None where something else does.
        key: of session references, the estate's, if it has one.
        on_stale: overrides the guard's own, for all requests or by environ (a function may return None).
        background: by environ, whether a request is no activity, whatever its headers say.

    Raises:
        ConfigError: on_stale is neither.
    """

    def __init__(
        self,
        app: "WSGIApplication",
        *,
        guard: SyncGuard,
        identify: Identify,
        publisher: SyncActivityPublisher | None = None,
        key: bytes | None = None,
        on_stale: "OnStale | Callable[[WSGIEnvironment], OnStale | None] | None" = None,
        background: "Callable[[WSGIEnvironment], bool] | None" = None,
    ) -> None:
        if on_stale not in (None, *ON_STALE) and not callable(on_stale):
            raise ConfigError(f"on_stale is {on_stale!r}: allow, deny, or a function of the environ")
        self._app = app
        self._guard = guard
        self._identify = identify
        self._gate = Gate(guard, publisher, key)
        self._on_stale = on_stale
        self._background = background

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        identity = self._identify(environ)
        if identity is None:
            return self._app(environ, start_response)
        session = self._gate.check(identity, self._on_stale(environ) if callable(self._on_stale) else self._on_stale)
        if not session.decision.allowed:
            return _refuse(start_response, session.decision)
        environ[SESSION_KEY] = session
        over = environ[OVER_KEY] = threading.Event()
        if header(environ, BACKGROUND) != "1" and not (self._background is not None and self._background(environ)):
            self._gate.touch(session)
        start = _Start(start_response)
        parts = self._app(environ, start)
        file_wrapper = environ.get("wsgi.file_wrapper")
        if isinstance(parts, list | tuple) or (isinstance(file_wrapper, type) and isinstance(parts, file_wrapper)):
            return parts  # it is complete, or a file that the server sends by itself
        return Stream(parts, self._guard, session, over, start.length, started=start.called)


class _Start:
    """The server's start_response, and what was promised through it."""

    def __init__(self, inner: "StartResponse") -> None:
        self._inner = inner
        self._headers: list[tuple[str, str]] = []
        self.called = False

    def __call__(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /
    ) -> Callable[[bytes], object]:
        self.called = True
        self._headers = headers
        return self._inner(status, headers, exc_info) if exc_info is not None else self._inner(status, headers)

    def length(self) -> int | None:
        for name, value in self._headers:
            if name.lower() == "content-length" and value.isdecimal():
                return int(value)
        return None


def _refuse(start_response: "StartResponse", decision: Decision) -> Iterable[bytes]:
    body = problem(decision)
    headers = [(name.decode(), value.decode()) for name, value in HEADERS]
    start_response("401 Unauthorized", [*headers, ("content-length", str(len(body)))])
    return [body]
