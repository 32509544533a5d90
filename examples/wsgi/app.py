"""A plain WSGI application whose sessions end on time: `gunicorn --workers 2 --threads 8 app:app`.

Another service has logged the user in, and gave a JWT; this one takes it from `Authorization: Bearer`.
"""

import os
from collections.abc import Iterable, Iterator
from threading import Event
from typing import TYPE_CHECKING

from lapse.consumers import SyncActivityPublisher, SyncGuard
from lapse.consumers.frameworks.identity import bearer
from lapse.consumers.frameworks.wsgi import OVER_KEY, SESSION_KEY, LapseMiddleware
from tokens import verified_claims  # yours: PyJWT, Authlib, ...

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

KAFKA, PREFIX = os.environ.get("LAPSE_KAFKA", "127.0.0.1:9092"), os.environ.get("LAPSE_PREFIX", "lapse.")


def news(over: Event) -> Iterator[bytes]:
    yield b"data: hello\n\n"
    while not over.wait(5):
        yield b": still here\n\n"


def application(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/events":
        start_response("200 OK", [("content-type", "text/event-stream")])
        return news(environ[OVER_KEY])
    start_response("200 OK", [("content-type", "text/plain")])
    return [environ[SESSION_KEY].subject.encode() if SESSION_KEY in environ else b"nobody"]


guard = SyncGuard(KAFKA, service="reports", prefix=PREFIX)
publisher = SyncActivityPublisher(KAFKA, service="reports", prefix=PREFIX)
app = LapseMiddleware(application, guard=guard, publisher=publisher, identify=bearer(verified_claims))
