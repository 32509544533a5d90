"""How is a Flask or WSGI application guarded? In one thread, without a server: the feed is in memory, time is set."""

import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from flask import Flask, Request, Response

from lapse.consumers import ConfigError, Identity, session_reference
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
        lapse = Lapse(identify=_identify, guard=self.feed.sync_guard(), publisher=self.publisher, **options)
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
