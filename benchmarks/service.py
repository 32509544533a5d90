"""The guarded service that `propagation` asks over HTTP: `uvicorn benchmarks.service:app`, settings as LAPSE_*.

GET /       200 while the session goes on, 401 from its end on; whose request it is stands in the headers
GET /open   the same without a session, so that nothing is asked of the guard
GET /seen   when a check in this process first refused each session, seconds of the machine's monotonic clock
"""

from __future__ import annotations

import os
import time

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from lapse.consumers import Ended, Identity
from lapse.consumers.frameworks.asgi import Scope
from lapse.consumers.frameworks.identity import header
from lapse.consumers.frameworks.starlette import Lapse

__all__ = ["app"]

_refused: dict[str, float] = {}


def _identify(scope: Scope) -> Identity | None:
    session_id = header(scope, "x-session")
    return Identity(session_id, header(scope, "x-subject") or "") if session_id else None


async def _answer(request: Request) -> Response:
    return PlainTextResponse("yes")


async def _seen(request: Request) -> Response:
    return JSONResponse(_refused)


def _ended(ended: Ended) -> None:
    assert not lapse.guard.check(ended.session), "the hook came before the denial"
    _refused[ended.session] = time.monotonic()


lapse = Lapse(os.environ["LAPSE_KAFKA"], prefix=os.environ["LAPSE_PREFIX"], service="bench", identify=_identify)
lapse.guard.on_ended(_ended)
app = Starlette(
    routes=[Route("/", _answer), Route("/open", _answer), Route("/seen", _seen)],
    lifespan=lapse.lifespan,
)
lapse.install(app)
