"""A Flask application whose sessions end on time: `gunicorn --workers 2 --threads 8 app:app`, settings as FLASK_*."""

import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict

from flask import Flask, Response, request, session
from flask_sock import Sock
from simple_websocket import Server

from lapse.consumers import Identity
from lapse.consumers.frameworks.flask import Lapse, current_session, session_over, unguarded

app = Flask(__name__)
app.config.from_prefixed_env()  # FLASK_SECRET_KEY, FLASK_LAPSE_KAFKA, FLASK_LAPSE_PREFIX
lapse = Lapse(app, identify=lambda _: Identity(**session["login"]) if "login" in session else None)
sock = Sock(app)


@app.post("/login")
@unguarded  # whoever logs in anew may still send the cookie of the session that ended
def login() -> str:
    identity = Identity(secrets.token_urlsafe(16), request.form["user"], started_at=int(time.time() * 1000))
    session["login"] = asdict(identity)
    return lapse.started(identity, policy="workforce")


@app.get("/me")
def me() -> str:
    return current_session().subject


@app.get("/events")
def events() -> Response:
    over = session_over()

    def news() -> Iterator[str]:
        yield "data: hello\n\n"
        while not over.wait(5):
            yield ": still here\n\n"

    return Response(news(), mimetype="text/event-stream")


@sock.route("/chat")  # type: ignore[untyped-decorator]  # flask-sock ships no types
@lapse.websocket
def chat(ws: Server) -> None:
    while True:
        ws.send(ws.receive())
