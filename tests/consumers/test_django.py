"""How is a Django project guarded? Django's own test clients, sync and async; the feed is in memory, time is set.

Django's settings are one for a process, so the project here needs no database: identities come from a header. Django's
sessions, signals and servers are in tests/integration/test_frameworks_django.py.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar

import django
import pytest
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from django.conf import settings
from django.contrib.sessions.backends.signed_cookies import SessionStore
from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.urls import path

from lapse.consumers import ConfigError, Identity, SyncGuard, session_reference
from lapse.consumers.testing import MemoryFeed, SyncMemoryPublisher
from lapse.schemas import SessionClosed, SessionStarted, SessionTouched

RAW = "the-token"
REFERENCE = session_reference(RAW)
LAPSE: dict[str, Any] = {"KAFKA": "127.0.0.1:1", "API_PATHS": ["/api/"]}

settings.configure(
    ALLOWED_HOSTS=["testserver"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "lapse.consumers.frameworks.django",
    ],
    MIDDLEWARE=["lapse.consumers.frameworks.django.middleware.LapseMiddleware"],
    LOGIN_URL="/login",
    SECRET_KEY="only-for-tests",
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",  # the one whose key does not last
    LAPSE=LAPSE,
)
django.setup()

from lapse.consumers.frameworks.django import (  # noqa: E402  # as in a project
    background,
    enforcement,
    on_stale,
    sessions,
    unguarded,
)
from lapse.consumers.frameworks.django.channels import LapseMiddleware  # noqa: E402  # likewise
from lapse.consumers.frameworks.django.signals import logged_in, logged_out  # noqa: E402  # likewise

FEEDS: list[MemoryFeed] = []


def _identify(request: Any) -> Identity | None:
    raw = request.headers.get("x-token")
    return Identity(raw, "u-1") if raw else None


def _plain(request: Any) -> HttpResponse:
    return HttpResponse(request.lapse.subject if hasattr(request, "lapse") else "nobody")


def _stream(request: Any) -> StreamingHttpResponse:
    def parts() -> Iterator[bytes]:
        yield b"one"
        FEEDS[-1].end(REFERENCE)
        assert request.lapse_over.wait(0)
        yield b"two"

    return StreamingHttpResponse(parts())


def _async_stream(request: Any) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        FEEDS[-1].end(REFERENCE)
        yield b"two"

    return StreamingHttpResponse(parts())


def _whole(request: Any) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    return StreamingHttpResponse(parts())


urlpatterns = [
    path("plain", _plain),
    path("api/plain", _plain),
    path("login", _plain),
    path("poll", background(lambda request: _plain(request))),
    path("strict", on_stale("deny")(lambda request: _plain(request))),
    path("lenient", on_stale("allow")(lambda request: _plain(request))),
    path("open", unguarded(lambda request: _plain(request))),
    path("stream", _stream),
    path("async-stream", _async_stream),
    path("whole", _whole),
]


class _Project:
    """The project with a feed and a publisher, asked by one session."""

    def __init__(self) -> None:
        self.feed = MemoryFeed()
        FEEDS.append(self.feed)
        self.publisher = SyncMemoryPublisher(clock=self.feed.clock)
        self.options = {**LAPSE, "IDENTIFY": _identify, "GUARD": self.feed.sync_guard(), "PUBLISHER": self.publisher}

    def touches(self) -> list[str]:
        return [activity.session for activity in self.publisher.take() if isinstance(activity, SessionTouched)]


@pytest.fixture
def project() -> Iterator[_Project]:
    made = _Project()
    with override_settings(LAPSE=made.options):
        yield made


def _get(path: str, accept: str = "text/html", **headers: str) -> Any:
    return Client().get(path, headers={"x-token": RAW, "accept": accept, **headers})


def test_what_reaches_a_view_is_a_touch_unless_it_is_background(project: _Project) -> None:
    assert _get("/poll").content == b"u-1"
    _get("/plain", **{"x-lapse-background": "1"})
    _get("/missing")
    assert project.touches() == []
    assert _get("/plain").content == b"u-1"
    assert project.touches() == [REFERENCE]


def test_a_page_leads_to_the_login_and_an_api_is_told_why(project: _Project) -> None:
    project.feed.end(REFERENCE, cause="idle")
    assert _get("/plain?a=1")["location"] == "/login?next=/plain%3Fa%3D1"
    for path_of, accept in (("/plain", "application/json"), ("/plain", "*/*"), ("/api/plain", "text/html")):
        answer = _get(path_of, accept)
        assert (answer.status_code, answer["content-type"]) == (401, "application/problem+json")
        assert answer.json()["cause"] == "idle"
    assert _get("/login").content == b"nobody"
    assert _get("/open").content == b"nobody"
    assert _get("/missing").status_code == 302


def _fallback(get_response: Any) -> Any:
    """A middleware that serves what no view does, as Django's flatpages."""

    def serve(request: Any) -> Any:
        response = get_response(request)
        return HttpResponse("fallback") if response.status_code == 404 else response

    return serve


def _other_urlconf(get_response: Any) -> Any:
    """A middleware behind which a strict view serves /plain."""

    def serve(request: Any) -> Any:
        request.urlconf = (path("plain", on_stale("deny")(lambda request: _plain(request))),)
        return get_response(request)

    return serve


def _stale(project: _Project, what: str) -> SyncGuard:
    """Make the project's guard one that is stale, and return it."""
    guard = project.feed.sync_guard(on_stale=what)
    project.options["GUARD"] = guard
    enforcement.cache_clear()
    project.feed.processor_runs = False
    project.feed.advance(10_000)
    return guard


def _counts(guard: SyncGuard) -> tuple[int, int, int]:
    return guard.checks, guard.refused, guard.allowed_while_stale


def test_a_stale_guard_does_what_the_view_says(project: _Project) -> None:
    guard = _stale(project, "allow")
    assert _get("/plain").status_code == 200
    assert _get("/strict").json()["cause"] is None
    assert _counts(guard) == (2, 1, 1)
    assert project.touches() == [REFERENCE]


def test_each_request_is_counted_once_as_what_it_was_while_the_guard_is_stale(project: _Project) -> None:
    guard = _stale(project, "deny")
    for path_of in ("/plain", "/plain", "/strict", "/missing"):
        assert _get(path_of).status_code == 401
    assert _counts(guard) == (4, 4, 0)
    assert project.touches() == []
    for path_of in ("/lenient", "/open", "/login"):
        assert _get(path_of).content == b"u-1"
    assert _counts(guard) == (7, 4, 3)


def test_an_ended_session_ends_whatever_a_stale_guard_does_with_others(project: _Project) -> None:
    project.feed.end(REFERENCE, cause="idle")
    _stale(project, "allow")
    assert _get("/lenient", "application/json").json()["cause"] == "idle"
    assert _get("/plain")["location"] == "/login?next=/plain"


@pytest.mark.parametrize(("what", "content"), [("allow", b"fallback"), ("deny", None)])
def test_what_no_view_serves_goes_by_the_guards_own_word(project: _Project, what: str, content: bytes | None) -> None:
    guard = _stale(project, what)
    with override_settings(MIDDLEWARE=[*settings.MIDDLEWARE, f"{__name__}._fallback"]):
        answer = _get("/missing")
    assert answer.status_code == (401 if content is None else 200)
    assert content is None or answer.content == content
    assert guard.checks == 1


def test_a_view_that_a_later_middleware_chose_is_not_reached_against_its_mark(project: _Project) -> None:
    _stale(project, "allow")
    with override_settings(MIDDLEWARE=[*settings.MIDDLEWARE, f"{__name__}._other_urlconf"]):
        assert _get("/plain").status_code == 401
    assert project.touches() == []


async def test_a_stale_guard_does_the_same_under_asgi(project: _Project) -> None:
    guard = _stale(project, "deny")
    client, headers = AsyncClient(), {"x-token": RAW}
    statuses = [(await client.get(path_of, headers=headers)).status_code for path_of in ("/plain", "/missing", "/open")]
    assert statuses == [401, 401, 200]
    assert _counts(guard) == (3, 2, 1)


def test_a_stream_ends_with_its_session(project: _Project) -> None:
    assert b"".join(_get("/stream").streaming_content) == b"one"
    assert Client().get("/stream", headers={"x-token": RAW}).status_code == 401


async def test_the_same_under_asgi(project: _Project) -> None:
    client, headers = AsyncClient(), {"x-token": RAW, "accept": "application/json"}
    assert (await client.get("/plain", headers=headers)).content == b"u-1"
    assert project.touches() == [REFERENCE]
    whole = await client.get("/whole", headers=headers)
    assert [part async for part in whole.streaming_content] == [b"one", b"two"]
    stream = await client.get("/async-stream", headers=headers)
    assert [part async for part in stream.streaming_content] == [b"one"]
    assert (await client.get("/plain", headers=headers)).status_code == 401


class _Socket:
    """A WebSocket of Channels, as its server sees it."""

    def __init__(self, consumer: Any, session: Any = None, headers: Any = None, **options: Any) -> None:
        self.scope = {
            "type": "websocket",
            "path": "/chat",
            "query_string": b"",
            "headers": headers or [(b"x-token", RAW.encode())],
            "subprotocols": [],
            **({} if session is None else {"session": session, "user": "ann"}),
        }
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.outgoing: asyncio.Queue[Any] = asyncio.Queue()
        app = LapseMiddleware(consumer.as_asgi(), **options)
        self.running = asyncio.ensure_future(app(self.scope, self.incoming.get, self.outgoing.put))

    async def told(self, **message: Any) -> Any:
        """Return what is sent next, once something was received."""
        if message:
            self.incoming.put_nowait(message)
        async with asyncio.timeout(5):
            return await self.outgoing.get()


class _Chat(AsyncWebsocketConsumer):  # type: ignore[misc]  # Channels ships no types
    left: ClassVar[list[int]] = []

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.send(text_data=f"{self.scope['lapse.session'].subject}: {text_data}")

    async def disconnect(self, code: int) -> None:
        await asyncio.sleep(0.01)  # a round trip to the database
        self.left.append(code)


async def test_a_websocket_of_channels_is_touched_and_closed_and_its_consumer_disconnects(project: _Project) -> None:
    _Chat.left.clear()
    socket = _Socket(_Chat)
    assert (await socket.told(type="websocket.connect"))["type"] == "websocket.accept"
    assert project.touches() == [REFERENCE]
    project.feed.advance(5_000)
    assert (await socket.told(type="websocket.receive", text="hello"))["text"] == "u-1: hello"
    assert project.touches() == [REFERENCE]
    project.feed.end(REFERENCE, cause="absolute")
    closed = await socket.told()
    assert closed == {"type": "websocket.close", "code": 4001, "reason": "session ended: absolute"}
    await socket.running
    assert _Chat.left == [4001]
    refused = await _Socket(_Chat).told(type="websocket.connect")
    assert (refused["type"], refused["code"]) == ("websocket.close", 4001)


async def test_a_websocket_is_closed_while_its_consumers_thread_works(project: _Project) -> None:
    working, done = threading.Event(), threading.Event()

    class Slow(WebsocketConsumer):  # type: ignore[misc]  # Channels ships no types
        def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            working.set()
            assert done.wait(10)
            self.send(text_data="done")

    socket = _Socket(Slow)
    assert (await socket.told(type="websocket.connect"))["type"] == "websocket.accept"
    socket.incoming.put_nowait({"type": "websocket.receive", "text": "go"})
    assert await asyncio.to_thread(working.wait, 5)
    project.feed.end(REFERENCE)
    try:
        assert (await socket.told())["code"] == 4001
    finally:
        done.set()
    await socket.running
    assert socket.outgoing.empty()


@pytest.mark.parametrize("options", [{"background": lambda scope: True}, {"touch_on_message": False}])
async def test_a_connection_or_its_messages_may_be_no_activity(project: _Project, options: dict[str, Any]) -> None:
    _Chat.left.clear()
    socket = _Socket(_Chat, **options)
    await socket.told(type="websocket.connect")
    project.touches()
    project.feed.advance(5_000)
    await socket.told(type="websocket.receive", text="a heartbeat")
    assert project.touches() == []
    socket.incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
    await socket.running
    assert _Chat.left == [1000]


async def test_without_channels_session_a_websocket_is_not_guarded_silently(project: _Project) -> None:
    with override_settings(LAPSE={**project.options, "IDENTIFY": None}), pytest.raises(ConfigError, match="AuthMidd"):
        await _Socket(_Chat).running


def _of_a_login() -> Any:
    """Return a request in whose session somebody is logged in, from before Lapse was installed."""
    request = RequestFactory().get("/")
    request.COOKIES[settings.SESSION_COOKIE_NAME] = "something"
    request.session = SessionStore()
    request.session["_auth_user_id"] = "7"
    request.user = "ann"
    return request


def test_a_login_from_before_keeps_the_id_that_it_gets(project: _Project) -> None:
    options = {**project.options, "IDENTIFY": None, "TENANT": lambda request, user: f"of {user}"}
    with override_settings(LAPSE=options):
        request = _of_a_login()
        first = sessions.of_session(request, enforcement())
        assert first is not None
        assert (first.subject, first.tenant, first.started_at) == ("7", "of ann", None)
        assert sessions.of_session(request, enforcement()) == first
        request.COOKIES.clear()
        assert sessions.of_session(request, enforcement()) is None


async def test_a_websocket_goes_by_djangos_session_and_keeps_the_id_that_a_login_gets_there(project: _Project) -> None:
    with override_settings(LAPSE={**project.options, "IDENTIFY": None}):
        session = _of_a_login().session
        cookie = (b"cookie", f"{settings.SESSION_COOKIE_NAME}=something".encode())
        told = []
        for stored in (session, None):
            socket = _Socket(_Chat, session=stored or SessionStore(session.session_key), headers=[cookie])
            assert (await socket.told(type="websocket.connect"))["type"] == "websocket.accept"
            told.append(socket.scope["lapse.session"])
            socket.incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
            await socket.running
        assert told[0] == told[1]  # the second has read it where sessions are kept
        assert told[0].subject == "7"
        socket = _Socket(_Chat, session=SessionStore(), headers=[cookie])  # nobody's
        assert (await socket.told(type="websocket.connect"))["type"] == "websocket.accept"
        assert "lapse.session" not in socket.scope
        socket.incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await socket.running


def test_logins_and_logouts_are_told_and_a_new_login_is_a_new_session(project: _Project) -> None:
    options = {**project.options, "IDENTIFY": None, "POLICY": lambda request, user: f"policy of {user}"}
    with override_settings(LAPSE=options):
        request = _of_a_login()
        for _ in range(2):  # the second time in the same session
            logged_in(request=request, user="ann")
        logged_out(request=request, user="ann")
        logged_in(request=RequestFactory().get("/"), user="ann")  # no session, nothing to tell
    told = project.publisher.take()
    started = [activity for activity in told if isinstance(activity, SessionStarted)]
    closed = [activity.session for activity in told if isinstance(activity, SessionClosed)]
    assert [activity.policy for activity in started] == ["policy of ann"] * 2
    assert len({activity.session for activity in started}) == 2
    assert closed == [activity.session for activity in started]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (None, "LAPSE"),
        ({}, "KAFKA"),
        ({"KAFKA": "k", "SERVCE": "x"}, "SERVCE"),
        ({**LAPSE, "API_PATHS": "/a"}, "API_P"),
    ],
)
def test_wrong_settings_are_refused_by_name(given: object, named: str) -> None:
    with override_settings(LAPSE=given), pytest.raises(ConfigError, match=named):
        enforcement()
