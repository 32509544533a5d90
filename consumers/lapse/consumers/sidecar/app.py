"""May the proxy pass this request on? The sidecar as an ASGI application.

1. what is asked about (asked.py), and which logins it carries (logins.py): a bad one is refused;
2. without a login: let pass as nobody's, or refused where a session is required;
3. the guard is asked about every login; the first refusal is the answer;
4. a touch is published for every login, unless the request is background polling.

A body is never read, whatever the method. A question with an `Upgrade` header (Caddy asks so about WebSockets) is a
plain one. Nothing here logs, counts or answers with anything that a client sent.
"""

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from lapse.consumers.activity import ActivityPublisher
from lapse.consumers.guard import Guard
from lapse.consumers.sidecar import answers
from lapse.consumers.sidecar.asked import CHECK, Asked, Headers, asked_by
from lapse.consumers.sidecar.config import SidecarConfig
from lapse.consumers.sidecar.keys import KeyRing, read_key, read_key_set
from lapse.consumers.sidecar.logins import BadLogin, Login, Logins
from lapse.consumers.sidecar.metrics import Metrics
from lapse.consumers.sidecar.routes import Routes
from lapse.consumers.sidecar.tokens import Tokens

__all__ = ["Sidecar", "build_app"]

_UNDER_CHECK: Final = CHECK + b"/"


class Sidecar:
    """Answers questions about requests.

    Args:
        config: what it is told.
        guard, publisher: its own, or made for it.

    Attributes:
        ring: the keys of tokens; None where none are taken.

    Raises:
        ConfigError: config.key_file holds no key.
    """

    def __init__(
        self, config: SidecarConfig, *, guard: Guard | None = None, publisher: ActivityPublisher | None = None
    ) -> None:
        self.config = config
        self.guard = guard or Guard(
            config.bootstrap_servers,
            service=config.service,
            prefix=config.prefix,
            on_stale=config.on_stale,
            stale_after_ms=config.stale_after_ms,
            session_life_max_ms=config.session_life_max_ms,
        )
        self.publisher = publisher or ActivityPublisher(
            config.bootstrap_servers,
            service=config.service,
            prefix=config.prefix,
            touch_interval_ms=config.touch_interval_ms,
        )
        self.metrics = Metrics(self.guard, self.publisher)
        self.ring = _ring(config)
        self._logins = Logins(config, None if self.ring is None else Tokens(config, self.ring))
        self._routes = Routes(config.on_stale, config.stale_routes, config.open_routes)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start and stop what it needs."""
        async with contextlib.AsyncExitStack() as stack:
            if self.ring is not None:
                stack.push_async_callback(self.ring.stop)
                await self.ring.start()
            await stack.enter_async_context(self.publisher)
            await stack.enter_async_context(self.guard)
            yield

    async def answer(self, method: str, raw_path: bytes, headers: Headers) -> Response:
        """Return the answer to a question."""
        asked = asked_by(method, raw_path, headers)
        try:
            logins = await self._logins.of(headers)
        except BadLogin as bad:
            return self._refused("unverified" if bad.unverified else "invalid", str(bad))
        if not logins:
            return self._nobodys(asked)
        return self._checked(asked, logins)

    def why_not_ready(self) -> str | None:
        """Return why it should not be asked, as a sentence, or None where it is ready."""
        if self.ring is not None and self.ring.keys is None:
            return "there are no keys to verify tokens by"
        return self.guard.why_stale

    def _nobodys(self, asked: Asked) -> Response:
        if self.config.require_session and not asked.is_preflight and not self._routes.is_open(asked.paths):
            return self._refused("missing", "the request carries no session")
        self.metrics.passed.labels("none").inc()
        return answers.passed(None)

    def _checked(self, asked: Asked, logins: list[Login]) -> Response:
        on_stale = self._routes.on_stale(asked.paths)
        stale = False
        for login in logins:
            decision = self.guard.check(
                login.reference,
                subject=login.subject,
                tenant=login.tenant,
                started_at=login.started_at,
                on_stale=on_stale,
            )
            if not decision.allowed:
                answer = answers.refused(decision)
                self.metrics.refused.labels(answer.headers[answers.CAUSE_HEADER]).inc()
                return answer
            stale = stale or decision.stale
        if not asked.is_background:
            for login in logins:
                self._touch(login)
        self.metrics.passed.labels("stale" if stale else "live").inc()
        return answers.passed(logins[0].reference, stale=stale)

    def _touch(self, login: Login) -> None:
        if login.subject is None:
            self.metrics.untold.inc()
            return
        # As in the ASGI middleware: the touch may overtake the session's start, and the start is a wall clock's.
        age_ms = None if login.started_at is None else max(0, int(time.time() * 1000) - login.started_at)
        self.publisher.touched(login.reference, login.subject, tenant=login.tenant, session_age_ms=age_ms)

    def _refused(self, cause: answers.OwnCause, detail: str) -> Response:
        self.metrics.refused.labels(cause).inc()
        return answers.refused_by_sidecar(cause, detail)


class _Questions:
    """Takes what is under /check before any router sees it: by the path as it was sent, whatever the method.

    A router would match the decoded path, in which an encoded line break ends a pattern, and answer 404.
    """

    def __init__(self, app: ASGIApp, sidecar: Sidecar) -> None:
        self._app = app
        self._sidecar = sidecar

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw_path: bytes = scope.get("raw_path") or b""
        if scope["type"] != "http" or not (raw_path == CHECK or raw_path.startswith(_UNDER_CHECK)):
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        response = await self._sidecar.answer(scope["method"], raw_path, scope["headers"])
        self._sidecar.metrics.seconds.observe(time.perf_counter() - began)
        await response(scope, receive, send)


def build_app(sidecar: Sidecar) -> Starlette:
    """Return the application: /check, /healthz, /readyz and /metrics."""

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        why = sidecar.why_not_ready()
        if why is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready", "why": why}, status_code=503)

    async def metrics(request: Request) -> Response:
        return Response(sidecar.metrics.text(), media_type="text/plain; version=0.0.4")

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with sidecar.running():
            yield

    app = Starlette(
        routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)], lifespan=lifespan
    )
    app.add_middleware(_Questions, sidecar=sidecar)
    return app


def _ring(config: SidecarConfig) -> KeyRing | None:
    if config.key_file is not None:
        path = config.key_file
        read_key(path)  # what is wrong with it is said at start
        return KeyRing(lambda: read_key(path), str(path), None)
    if config.jwks is not None:
        where = config.jwks
        return KeyRing(lambda: read_key_set(where), where, config.jwks_refresh_s)
    return None
