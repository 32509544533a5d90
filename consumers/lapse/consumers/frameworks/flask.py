"""How is a Flask application guarded?

app = Flask(__name__)
app.config.update(LAPSE_KAFKA="localhost:9092", LAPSE_SERVICE="shop")
lapse = Lapse(app, identify=identify)

@app.get("/me")
def me() -> str:
    return current_session().subject

It works by the application's own hooks, so that `identify` may use `flask.session`, and routes may be marked
(marks.py). The rules are those of wsgi.py. WebSockets, as flask-sock gives them, are ended by a decorator (sock.py).
"""

import functools
import threading
from collections.abc import Callable
from typing import Any, Final, TypeAlias, TypeVar

from flask import Flask, Request, Response, current_app, g, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import Unauthorized

from lapse.consumers.activity import SyncActivityPublisher
from lapse.consumers.frameworks.gate import BACKGROUND, Gate
from lapse.consumers.frameworks.identity import ActiveSession, Identity
from lapse.consumers.frameworks.marks import background, is_background, is_unguarded, on_stale, on_stale_of, unguarded
from lapse.consumers.frameworks.problem import HEADERS, STATUS, problem
from lapse.consumers.frameworks.streams import Stream
from lapse.consumers.guard import Decision, SyncGuard
from lapse.schemas import ConfigError

__all__ = ["Lapse", "background", "current_session", "on_stale", "session_over", "unguarded"]

Identify: TypeAlias = Callable[[Request], Identity | None]
Handler = TypeVar("Handler", bound=Callable[..., Any])

_SESSION: Final = "_lapse_session"
_OVER: Final = "_lapse_over"


def current_session() -> ActiveSession:
    """Return the session of the request.

    Raises:
        Unauthorized: the request has no session (identify returned None).
    """
    session: ActiveSession | None = g.get(_SESSION)
    if session is None:
        raise Unauthorized("no session")
    return session


def session_over() -> threading.Event:
    """Return what is set when the session of this request ends while its response streams.

    A generator that waits for news should wait with it: `while not over.wait(1): ...`.
    """
    current_session()
    over: threading.Event = g.get(_OVER)
    return over


class Lapse:
    """The publisher and the guard of an application.

    Settings are the application's: LAPSE_KAFKA (bootstrap servers), LAPSE_SERVICE (by default the application's name),
    LAPSE_PREFIX (`lapse.`), LAPSE_REFERENCE_KEY (none), LAPSE_ON_STALE (`allow`).

    Args:
        app: the application, or None: `init_app` takes it later.
        identify: takes the request, returns whose it is or None; flask.session is there.
        refused: makes another answer than 401 problem+json.
        guard, publisher: your own, made with other arguments.

    Attributes:
        guard, publisher: from `init_app` on.
    """

    guard: SyncGuard
    publisher: SyncActivityPublisher

    def __init__(
        self,
        app: Flask | None = None,
        *,
        identify: Identify,
        refused: Callable[[Decision], ResponseReturnValue] | None = None,
        guard: SyncGuard | None = None,
        publisher: SyncActivityPublisher | None = None,
    ) -> None:
        self._identify = identify
        self._refused = refused if refused is not None else _refuse
        self._given = (guard, publisher)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Guard the application. Hooks that it has registered before run outside, and see unguarded requests.

        Raises:
            ConfigError: LAPSE_KAFKA is missing, or a setting is out of range.
        """
        kafka, prefix = app.config.get("LAPSE_KAFKA", ""), app.config.get("LAPSE_PREFIX", "lapse.")
        service, key = app.config.get("LAPSE_SERVICE", app.name), app.config.get("LAPSE_REFERENCE_KEY")
        guard, publisher = self._given
        if not kafka and (guard is None or publisher is None):
            raise ConfigError("LAPSE_KAFKA is missing in the application's configuration: where is Kafka?")
        self.guard = guard or SyncGuard(
            kafka, service=service, prefix=prefix, on_stale=app.config.get("LAPSE_ON_STALE", "allow")
        )
        self.publisher = publisher or SyncActivityPublisher(kafka, service=service, prefix=prefix)
        self._gate = Gate(self.guard, self.publisher, key.encode() if isinstance(key, str) else key)
        app.extensions["lapse"] = self
        app.before_request(self._before)
        app.after_request(self._after)

    def started(self, identity: Identity, *, policy: str | None = None) -> str:
        """Tell that a subject logged in, and return the session's reference; more by `publisher.started`."""
        return self._gate.started(identity, policy=policy)

    def closed(self, identity: Identity) -> str:
        """Tell that a subject logged out, and return the session's reference."""
        return self._gate.closed(identity)

    def websocket(self, handler: Handler) -> Handler:
        """Decorate the handler of a WebSocket, whose first argument is a `simple_websocket.Server`, as of flask-sock.

        When the session ends it is closed with 4001. Each message that is received is a touch, unless the handshake was
        none: by its header, or since the handler is marked @background.
        """
        from lapse.consumers.frameworks.sock import serving

        @functools.wraps(handler)
        def guarded(ws: Any, *args: Any, **kwargs: Any) -> Any:
            session: ActiveSession | None = g.get(_SESSION)
            if session is None:
                return handler(ws, *args, **kwargs)
            touch = None if _is_background() else lambda: self._gate.touch(session)
            with serving(ws, self.guard, session, session_over(), touch) as socket:
                return handler(socket, *args, **kwargs)

        return guarded  # type: ignore[return-value]  # it takes and returns what the handler does

    def _before(self) -> ResponseReturnValue | None:
        view = _view()
        identity = None if is_unguarded(view) else self._identify(request)
        if identity is None:
            return None
        session = self._gate.check(identity, on_stale_of(view))
        if not session.decision.allowed:
            return self._refused(session.decision)
        setattr(g, _SESSION, session)
        setattr(g, _OVER, threading.Event())
        if not _is_background():
            self._gate.touch(session)
        return None

    def _after(self, response: Response) -> Response:
        session: ActiveSession | None = g.get(_SESSION)
        # What passes through directly is a file, which the server may send by itself.
        if session is not None and response.is_streamed and not response.direct_passthrough:
            parts = response.response
            response.response = Stream(parts, self.guard, session, g.get(_OVER), lambda: response.content_length)
        return response


def _view() -> object:
    return current_app.view_functions.get(request.endpoint) if request.endpoint else None


def _is_background() -> bool:
    return request.headers.get(BACKGROUND) == "1" or is_background(_view())


def _refuse(decision: Decision) -> ResponseReturnValue:
    return Response(problem(decision), STATUS, [(name.decode(), value.decode()) for name, value in HEADERS])
