"""How is a Flask or WSGI application guarded? In one thread, without a server: the feed is in memory, time is set."""

import socket
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from flask import Flask, Request, Response
from flask_sock import Sock
from simple_websocket import ConnectionClosed

from lapse.consumers import ConfigError, Identity, session_reference
from lapse.consumers.frameworks import sock
from lapse.consumers.frameworks.flask import Lapse, background, current_session, on_stale, session_over, unguarded
from lapse.consumers.frameworks.wsgi import OVER_KEY, SESSION_KEY, LapseMiddleware
from lapse.consumers.testing import MemoryFeed, SyncMemoryPublisher
from lapse.schemas import SessionTouched

RAW = "the-cookie"
REFERENCE = session_reference(RAW)
AT = 1_800_000_000_000


def _identify(request: Request) -> Identity | None:
    raw = request.cookies.get("sid")
    return Identity(raw, "u-1", started_at=AT) if raw else None


class _Service:
    """An application with marked routes, its feed and its publisher."""

    def __init__(self, **options: Any) -> None:
        self.feed = MemoryFeed()
        self.publisher = SyncMemoryPublisher(clock=self.feed.clock)
        self.app = Flask(__name__)
        self.lapse = lapse = Lapse(
            identify=_identify, guard=self.feed.sync_guard(), publisher=self.publisher, **options
        )
        lapse.init_app(self.app)
        views = {"plain": _plain, "poll": background(_poll), "strict": on_stale("deny")(_strict), "login": _login}
        for path, view in views.items():
            self.app.add_url_rule(f"/{path}", path, view)
        self.client = self.app.test_client()
        self.client.set_cookie("sid", RAW)

    def touches(self) -> list[str]:
        return [activity.session for activity in self.publisher.take() if isinstance(activity, SessionTouched)]


def _plain() -> str:
    return current_session().subject


def _poll() -> str:
    return "nothing new"


def _strict() -> str:
    return "strict"


@unguarded
def _login() -> str:
    return "logged in"


def test_a_request_is_a_touch_unless_it_or_its_route_is_background() -> None:
    service = _Service()
    assert service.client.get("/poll").text == "nothing new"
    service.client.get("/plain", headers={"x-lapse-background": "1"})
    assert service.touches() == []
    assert service.client.get("/plain").text == "u-1"
    assert service.touches() == [REFERENCE]


def test_an_ended_session_is_refused_everywhere_but_where_all_may_go() -> None:
    service = _Service()
    service.feed.end(REFERENCE, cause="idle")
    answer = service.client.get("/plain")
    assert (answer.status_code, answer.content_type) == (401, "application/problem+json")
    assert answer.get_json(force=True)["cause"] == "idle"
    assert service.client.get("/missing").status_code == 401
    assert service.client.get("/login").text == "logged in"
    service.client.delete_cookie("sid")
    assert service.client.get("/poll").status_code == 200
    assert service.client.get("/plain").status_code == 401  # nobody's, where the view wants somebody


def test_a_stale_guard_does_what_the_route_says() -> None:
    service = _Service()
    service.feed.processor_runs = False
    service.feed.advance(10_000)
    assert service.client.get("/plain").status_code == 200
    answer = service.client.get("/strict")
    assert (answer.status_code, answer.get_json(force=True)["cause"]) == (401, None)


def test_the_application_may_answer_by_itself() -> None:
    service = _Service(refused=lambda decision: (f"bye: {decision.cause}", 403))
    service.feed.end(REFERENCE, cause="revoked")
    assert (service.client.get("/plain").status_code, service.client.get("/plain").text) == (403, "bye: revoked")


def test_a_stream_ends_with_its_session_and_is_closed() -> None:
    service = _Service()
    closed = []

    @service.app.get("/stream")
    def stream() -> Response:
        over = session_over()

        def parts() -> Iterator[str]:
            try:
                yield "one"
                service.feed.end(REFERENCE, cause="absolute")
                assert over.wait(0)
                yield "two"
            finally:
                closed.append(True)

        return Response(parts())

    answer = service.client.get("/stream")
    assert answer.text == "one"
    answer.close()
    assert closed == [True]


def test_a_stream_whose_session_ends_before_its_first_part_is_empty() -> None:
    service = _Service()

    @service.app.get("/stream")
    def stream() -> Response:
        service.feed.end(REFERENCE, cause="revoked")  # between the check and the response
        return Response(iter(["one"]))

    assert service.client.get("/stream").text == ""


class _Socket:
    """The client's side of a WebSocket, raw, so that it need not behave; the server's is served by a thread."""

    def __init__(self, service: _Service, path: str = "/chat", **headers: str) -> None:
        self.end, server = socket.socketpair()
        self.end.settimeout(5)
        handshake = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version": "13",
            **headers,
        }
        environ = {"werkzeug.socket": server, "wsgi.url_scheme": "ws"}
        self.serving = threading.Thread(
            target=service.client.get, args=(path,), kwargs={"headers": handshake, "environ_overrides": environ}
        )
        self.serving.start()
        assert b" 101 " in self.until(b"\r\n\r\n")

    def until(self, end: bytes) -> bytes:
        read = b""
        while not read.endswith(end):
            read += self.end.recv(1) or pytest.fail(f"the server is gone after {read!r}")
        return read

    def send(self, text: bytes) -> None:
        self.end.sendall(bytes([0x81, 0x80 | len(text)]) + bytes(4) + text)

    def close(self) -> None:
        self.end.close()
        self.serving.join(10)
        assert not self.serving.is_alive()


def _chatting(service: _Service, told: list[object]) -> None:
    @Sock(service.app).route("/chat")  # type: ignore[untyped-decorator]  # flask-sock ships no types
    @service.lapse.websocket
    def chat(ws: Any) -> None:
        try:
            while True:
                told.append(ws.receive())
                ws.send(f"{current_session().subject}: {told[-1]}")
        except ConnectionClosed as closed:
            told.append(closed.reason)
            raise


def test_a_websocket_is_touched_and_closed_when_its_session_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sock, "_ANSWER_S", 60.0)
    service, told = _Service(), list[object]()
    _chatting(service, told)
    client = _Socket(service)
    assert service.touches() == [REFERENCE]
    service.feed.advance(5_000)
    client.send(b"hello")
    client.until(b"u-1: hello")
    assert service.touches() == [REFERENCE]
    service.feed.end(REFERENCE, cause="idle")
    assert client.until(b"session ended: idle")[-21:-19] == (4001).to_bytes(2, "big")
    client.end.sendall(b"\x88\x82" + bytes(4) + (4001).to_bytes(2, "big"))  # its answer
    client.serving.join(5)  # a client that answers is waited for no longer
    assert not client.serving.is_alive()
    assert told == ["hello", 4001]
    assert not service.lapse.guard._inner._hooks
    client.close()


def test_a_client_that_goes_on_after_the_end_is_not_heard_and_is_cut() -> None:
    service, told = _Service(), list[object]()
    _chatting(service, told)
    client = _Socket(service)
    service.feed.end(REFERENCE, cause="revoked")
    client.until(b"session ended: revoked")
    client.send(b"one order more")
    client.serving.join(5)
    assert not client.serving.is_alive()
    assert told == [4001]
    while client.end.recv(1):
        pass  # to its end: the server has broken off, though this client has not answered the close
    client.close()


def test_a_client_that_reads_nothing_holds_up_nobody_and_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sock, "_ANSWER_S", 3.0)
    service, full = _Service(), threading.Event()

    @Sock(service.app).route("/chat")  # type: ignore[untyped-decorator]  # flask-sock ships no types
    @service.lapse.websocket
    def chat(ws: Any) -> None:
        while True:
            ws.send("x" * 65_000)
            full.set()

    client = _Socket(service)
    assert full.wait(5)
    service.feed.end(REFERENCE)  # here its hooks run in this thread, else in the guard's
    assert client.serving.is_alive()  # it is not waited for
    client.serving.join(10)
    assert not client.serving.is_alive()
    client.close()


def test_a_websocket_of_a_background_handshake_or_route_is_no_activity() -> None:
    service, told = _Service(), list[object]()
    _chatting(service, told)

    @Sock(service.app).route("/ticker")  # type: ignore[untyped-decorator]  # flask-sock ships no types
    @service.lapse.websocket
    @background
    def ticker(ws: Any) -> None:
        ws.send(f"tick {ws.receive()}")

    for client in (_Socket(service, **{"X-Lapse-Background": "1"}), _Socket(service, "/ticker")):
        client.send(b"hello")
        client.until(b"hello")
        client.close()
    assert service.touches() == []


def test_a_websocket_of_nobody_is_the_handlers_own_to_serve() -> None:
    service, told = _Service(), list[object]()

    @Sock(service.app).route("/chat")  # type: ignore[untyped-decorator]  # flask-sock ships no types
    @service.lapse.websocket
    def chat(ws: Any) -> None:
        told.append(ws.receive())

    service.client.delete_cookie("sid")
    client = _Socket(service)
    client.send(b"hello")
    client.serving.join(5)
    client.close()
    assert told == ["hello"]


def test_kafka_must_be_named() -> None:
    with pytest.raises(ConfigError, match="LAPSE_KAFKA"):
        Lapse(Flask("shop"), identify=_identify)


def _run(
    feed: MemoryFeed, headers: list[tuple[str, str]], parts: Iterable[bytes], *, late: bool = False
) -> list[bytes]:
    """Serve one request of an application that answers so, as a server does it."""

    def lately(start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", headers)
        yield from parts

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        assert environ[SESSION_KEY].subject == "u-1"
        assert isinstance(environ[OVER_KEY], threading.Event)
        if late:
            return lately(start_response)
        start_response("200 OK", headers)
        return parts

    guarded = LapseMiddleware(app, guard=feed.sync_guard(), identify=lambda _: Identity(RAW, "u-1"))
    return list(guarded({}, lambda status, headers, exc_info=None: lambda part: None))


@pytest.mark.parametrize("late", [False, True])
def test_a_wsgi_stream_stops_and_a_complete_response_does_not(late: bool) -> None:
    def parts(feed: MemoryFeed) -> Iterator[bytes]:
        yield b"one"
        feed.end(REFERENCE, cause="idle")
        yield b"two"

    feed = MemoryFeed()
    assert _run(feed, [], parts(feed), late=late) == [b"one"]
    complete = MemoryFeed()
    assert _run(complete, [("Content-Length", "3")], iter([b"one"]), late=late) == [b"one"]
    broken = MemoryFeed()
    with pytest.raises(ConnectionAbortedError):
        _run(broken, [("Content-Length", "6")], parts(broken), late=late)


def test_wsgi_takes_a_word_or_a_function_for_on_stale() -> None:
    with pytest.raises(ConfigError, match="on_stale"):
        LapseMiddleware(
            lambda environ, start: [],
            guard=MemoryFeed().sync_guard(),
            identify=lambda _: None,
            on_stale="maybe",  # type: ignore[arg-type]  # a caller without a type checker
        )
