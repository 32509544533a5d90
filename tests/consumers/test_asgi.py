"""How is an ASGI application guarded? The middleware driven by ASGI messages; the feed is in memory, time is set."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest

from lapse.consumers import ConfigError, Identity, LapseMiddleware, session_reference
from lapse.consumers.frameworks.asgi import SCOPE_KEY, ASGIApp, Receive, Scope, Send
from lapse.consumers.testing import MemoryFeed, MemoryPublisher
from lapse.schemas import SessionTouched

RAW = "the-cookie"
REFERENCE = session_reference(RAW)
PLAIN = ((b"cookie", b"sid=the-cookie"),)
LAST_PART = {"type": "http.response.body", "body": b"", "more_body": False}


def _identify(scope: Scope) -> Identity | None:
    if scope["path"] == "/public":
        return None
    return Identity(RAW, "u-1", "acme", started_at=1_800_000_000_000)


class _Client:
    """One connection: what the server would give and take."""

    def __init__(self, kind: str, path: str = "/", headers: tuple[tuple[bytes, bytes], ...] = PLAIN) -> None:
        self.scope: Scope = {"type": kind, "path": path, "headers": list(headers), "extensions": {}}
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []
        self.news = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        return await self.incoming.get()

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        self.news.set()

    async def until_sent(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.sent) < count:
                self.news.clear()
                await self.news.wait()


class _Service:
    """The middleware around an application, with its feed and publisher."""

    def __init__(self, app: ASGIApp, **options: Any) -> None:
        self.feed = MemoryFeed()
        self.publisher = MemoryPublisher(clock=self.feed.clock)
        self.guard = self.feed.guard(on_stale=options.pop("guard_on_stale", "allow"))
        self.asgi = LapseMiddleware(app, guard=self.guard, identify=_identify, publisher=self.publisher, **options)

    def run(self, client: _Client) -> asyncio.Task[None]:
        return asyncio.create_task(self.asgi(client.scope, client.receive, client.send))

    def touches(self) -> list[str]:
        return [activity.session for activity in self.publisher.take() if isinstance(activity, SessionTouched)]


async def _hello(scope: Scope, receive: Receive, send: Send) -> None:
    body = orjson.dumps(scope[SCOPE_KEY].subject if SCOPE_KEY in scope else None)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def _streaming(parts: Callable[[], AsyncIterator[bytes]], headers: tuple[tuple[bytes, bytes], ...] = ()) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
        async for part in parts():
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"end", "more_body": False})

    return app


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        await send({"type": "websocket.send", "text": message["text"]})


async def test_a_request_of_a_live_session_passes_and_is_a_touch() -> None:
    service = _Service(_hello)
    client = _Client("http")
    await service.run(client)
    assert client.sent[1]["body"] == b'"u-1"'
    assert service.touches() == [REFERENCE]


async def test_a_request_without_a_session_passes_untouched() -> None:
    service = _Service(_hello)
    client = _Client("http", "/public")
    await service.run(client)
    assert client.sent[1]["body"] == b"null"
    assert service.touches() == []
    assert service.guard.checks == 0


async def test_background_polling_is_checked_and_is_no_touch() -> None:
    service = _Service(_hello)
    client = _Client("http", headers=((b"x-lapse-background", b"1"),))
    await service.run(client)
    assert client.sent[0]["status"] == 200
    assert (service.touches(), service.guard.checks) == ([], 1)


async def test_a_request_of_an_ended_session_is_refused_with_the_cause_as_a_problem() -> None:
    service = _Service(_hello)
    ended = service.feed.end(REFERENCE, cause="absolute")
    client = _Client("http")
    await service.run(client)
    start, body = client.sent
    headers = dict(start["headers"])
    assert start["status"] == 401
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"cache-control"] == b"no-store"
    problem = orjson.loads(body["body"])
    assert (problem["status"], problem["cause"], problem["due_at"]) == (401, "absolute", ended.due_at)
    assert int(headers[b"content-length"]) == len(body["body"])
    assert service.touches() == []
    assert RAW.encode() not in body["body"]


async def test_a_subjects_revocation_refuses_by_the_start_that_identify_gave() -> None:
    service = _Service(_hello)
    service.feed.revoke(subject="u-1", tenant="acme")
    client = _Client("http")
    await service.run(client)
    assert orjson.loads(client.sent[1]["body"])["cause"] == "revoked"


async def test_a_stale_guard_follows_on_stale_by_route() -> None:
    service = _Service(_hello, on_stale=lambda scope: "deny" if scope["path"] == "/pay" else None)
    service.feed.processor_runs = False
    service.feed.advance(10_000)
    paying, reading = _Client("http", "/pay"), _Client("http", "/read")
    await service.run(paying)
    await service.run(reading)
    assert paying.sent[0]["status"] == 401
    assert orjson.loads(paying.sent[1]["body"])["cause"] is None
    assert reading.sent[0]["status"] == 200
    assert service.guard.allowed_while_stale == 1


async def test_a_streaming_response_ends_when_its_session_ends() -> None:
    cleaned = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        try:
            yield b"one"
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    service = _Service(_streaming(parts))
    client = _Client("http")
    running = service.run(client)
    await client.until_sent(2)
    service.feed.end(REFERENCE)
    await running
    assert client.sent[-1] == LAST_PART
    assert cleaned.is_set()
    assert not service.guard._hooks


async def test_a_stream_whose_length_was_promised_is_broken_off() -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.Event().wait()

    service = _Service(_streaming(parts, headers=((b"Content-Length", b"1000"),)))
    client = _Client("http")
    running = service.run(client)
    await client.until_sent(2)
    service.feed.end(REFERENCE)
    with pytest.raises(ConnectionAbortedError):
        await running


async def test_a_session_that_ends_before_its_stream_begins_gets_no_part() -> None:
    begin = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        await begin.wait()
        for _ in range(100):
            yield b"part"
            await asyncio.sleep(0)

    service = _Service(_streaming(parts))
    client = _Client("http")
    running = service.run(client)
    await client.until_sent(1)
    service.feed.end(REFERENCE)
    begin.set()
    await running
    assert client.sent[1:] == [LAST_PART]


@pytest.mark.parametrize("starts_after_the_end", [False, True])
async def test_a_stream_that_waits_for_its_first_event_ends_with_its_session(starts_after_the_end: bool) -> None:
    ended, cleaned = asyncio.Event(), asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        try:
            await asyncio.Event().wait()
            yield b"one"
        finally:
            cleaned.set()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if starts_after_the_end:
            await ended.wait()
        await _streaming(parts)(scope, receive, send)

    service = _Service(app)
    client = _Client("http")
    running = service.run(client)
    if not starts_after_the_end:
        await client.until_sent(1)
    await asyncio.sleep(0)
    service.feed.end(REFERENCE)
    ended.set()
    async with asyncio.timeout(5):
        await running
    assert client.sent[1:] == [LAST_PART]
    assert cleaned.is_set()


async def test_a_response_whose_body_has_the_promised_length_is_finished_though_its_session_has_ended() -> None:
    """As Starlette's BaseHTTPMiddleware passes a plain response on: an empty part tells that it is complete."""
    begin = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await begin.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello", "more_body": True})
        await send(LAST_PART)

    service = _Service(app)
    client = _Client("http")
    running = service.run(client)
    await asyncio.sleep(0)
    service.feed.end(REFERENCE)
    begin.set()
    await running
    assert [message["body"] for message in client.sent[1:]] == [b"hello", b""]


async def test_a_plain_response_is_finished_though_its_session_ends_meanwhile() -> None:
    begin = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await begin.wait()
        await _hello(scope, receive, send)

    service = _Service(slow)
    client = _Client("http")
    running = service.run(client)
    await asyncio.sleep(0)
    service.feed.end(REFERENCE)
    begin.set()
    await running
    assert client.sent[1]["body"] == b'"u-1"'


async def test_an_open_websocket_is_closed_with_4001_when_its_session_ends() -> None:
    service = _Service(_echo)
    client = _Client("websocket")
    running = service.run(client)
    client.incoming.put_nowait({"type": "websocket.connect"})
    client.incoming.put_nowait({"type": "websocket.receive", "text": "hello"})
    await client.until_sent(2)
    service.feed.revoke(subject="u-1", tenant="acme")
    await running
    assert client.sent[-1] == {"type": "websocket.close", "code": 4001, "reason": "session ended: revoked"}
    assert [message["type"] for message in client.sent] == ["websocket.accept", "websocket.send", "websocket.close"]


async def test_an_application_that_says_goodbye_when_it_is_cut_says_it_to_nobody() -> None:
    async def polite(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            await receive()
        finally:
            await send({"type": "websocket.send", "text": "bye"})

    service = _Service(polite)
    client = _Client("websocket")
    running = service.run(client)
    client.incoming.put_nowait({"type": "websocket.connect"})
    await client.until_sent(1)
    service.feed.end(REFERENCE)
    await running
    assert [message["type"] for message in client.sent] == ["websocket.accept", "websocket.close"]


async def test_a_websocket_is_closed_at_once_though_its_application_is_in_the_middle_of_something() -> None:
    done = asyncio.Event()

    async def busy(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        work = asyncio.ensure_future(done.wait())  # as work in a thread, which cannot be cancelled
        while not work.done():
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                cancelled.set()
        await send({"type": "websocket.send", "text": "done"})

    cancelled = asyncio.Event()
    service = _Service(busy)
    client = _Client("websocket")
    running = service.run(client)
    client.incoming.put_nowait({"type": "websocket.connect"})
    await client.until_sent(1)
    service.feed.end(REFERENCE)
    await client.until_sent(2)
    assert (client.sent[1]["type"], client.sent[1]["code"]) == ("websocket.close", 4001)
    async with asyncio.timeout(5):
        await cancelled.wait()  # it had its time to come to an end by itself
    assert not running.done()
    done.set()
    await running
    assert len(client.sent) == 2


async def test_a_websockets_application_is_told_of_the_end_and_tidies_up_and_gets_no_message_more() -> None:
    received: list[Any] = []
    tidy = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while not received or received[-1]["type"] != "websocket.disconnect":
            received.append(await receive())
            if received[-1]["type"] == "websocket.connect":
                await send({"type": "websocket.accept"})
        await asyncio.sleep(0.01)  # a round trip to where its groups are
        tidy.set()

    service = _Service(app)
    client = _Client("websocket")
    running = service.run(client)
    client.incoming.put_nowait({"type": "websocket.connect"})
    await client.until_sent(1)
    service.feed.end(REFERENCE, cause="revoked")
    client.incoming.put_nowait({"type": "websocket.receive", "text": "one order more"})
    await running
    disconnect = {"type": "websocket.disconnect", "code": 4001, "reason": "session ended: revoked"}
    assert received == [{"type": "websocket.connect"}, disconnect]
    assert tidy.is_set()


async def test_a_websockets_application_that_takes_no_notice_of_the_end_is_cancelled() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        while True:
            await receive()

    service = _Service(app)
    client = _Client("websocket")
    running = service.run(client)
    await client.until_sent(1)
    service.feed.end(REFERENCE)
    async with asyncio.timeout(5):
        await running
    assert [message["type"] for message in client.sent] == ["websocket.accept", "websocket.close"]


async def test_an_application_that_gives_up_waiting_for_a_message_misses_none() -> None:
    received: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(3):
            waiting = asyncio.ensure_future(receive())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            client.incoming.put_nowait({"type": "websocket.receive", "text": "hello"})
            await asyncio.sleep(0)
            waiting.cancel()
            received.extend(await asyncio.gather(waiting, return_exceptions=True))
        received.append(await receive())

    client = _Client("websocket")
    async with asyncio.timeout(5):
        await _Service(app).run(client)
    texts = [message for message in received if isinstance(message, dict)]
    assert len(texts) + client.incoming.qsize() == 3


async def test_a_websocket_that_closed_itself_is_left_alone() -> None:
    service = _Service(_echo)
    client = _Client("websocket")
    running = service.run(client)
    for message in ({"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}):
        client.incoming.put_nowait(message)
    await running
    service.feed.end(REFERENCE)
    assert [message["type"] for message in client.sent] == ["websocket.accept"]


@pytest.mark.parametrize("extension", [True, False])
async def test_a_websocket_of_an_ended_session_is_not_accepted(extension: bool) -> None:
    service = _Service(_echo)
    service.feed.end(REFERENCE)
    client = _Client("websocket")
    if extension:
        client.scope["extensions"] = {"websocket.http.response": {}}
    client.incoming.put_nowait({"type": "websocket.connect"})
    await service.run(client)
    if extension:
        assert client.sent[0]["type"] == "websocket.http.response.start"
        assert client.sent[0]["status"] == 401
        assert orjson.loads(client.sent[1]["body"])["cause"] == "idle"
    else:
        assert client.sent == [{"type": "websocket.close", "code": 4001, "reason": "session ended: idle"}]


@pytest.mark.parametrize(("background", "expected"), [(False, 2), (True, 0)])
async def test_each_message_from_a_websockets_client_is_a_touch(background: bool, expected: int) -> None:
    service = _Service(_echo)
    client = _Client("websocket", headers=((b"x-lapse-background", b"1"),) if background else PLAIN)
    running = service.run(client)
    client.incoming.put_nowait({"type": "websocket.connect"})
    await client.until_sent(1)
    touches = service.touches()
    service.feed.clock.advance(5_000)
    client.incoming.put_nowait({"type": "websocket.receive", "text": "hello"})
    await client.until_sent(2)
    touches += service.touches()
    client.incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
    await running
    assert len(touches) == expected


async def test_a_timeout_of_the_applications_own_is_its_own() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise TimeoutError("of a database")

    with pytest.raises(TimeoutError, match="database"):
        await _Service(app).run(_Client("http"))


async def test_identify_may_be_asynchronous_and_a_key_changes_the_reference() -> None:
    async def identify(scope: Scope) -> Identity:
        return Identity(RAW, "u-1")

    feed = MemoryFeed()
    feed.end(session_reference(RAW, b"estate key"))
    asgi = LapseMiddleware(_hello, guard=feed.guard(), identify=identify, key=b"estate key")
    client = _Client("http")
    await asgi(client.scope, client.receive, client.send)
    assert client.sent[0]["status"] == 401


def test_an_identity_does_not_show_the_session_id() -> None:
    assert RAW not in repr(Identity(RAW, "u-1"))


def test_a_word_for_on_stale_that_is_none_is_refused_at_start() -> None:
    with pytest.raises(ConfigError, match="on_stale is 'denied'"):
        _Service(_hello, on_stale="denied")


async def test_other_scopes_pass() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    client = _Client("lifespan")
    await _Service(app).run(client)
    assert seen == ["lifespan"]


async def test_the_first_touch_says_how_old_the_session_is_for_it_may_overtake_the_start() -> None:
    service = _Service(_hello)
    before = time.time() * 1000 - 1_800_000_000_000
    await service.run(_Client("http"))
    after = time.time() * 1000 - 1_800_000_000_000
    (touch,) = service.publisher.take()
    assert isinstance(touch, SessionTouched)
    assert touch.session_age_ms is not None
    assert max(0, before) - 1 <= touch.session_age_ms <= max(0, after)
