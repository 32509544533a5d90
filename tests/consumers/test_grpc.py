"""How is a gRPC server guarded? Real servers and channels in this process; the feed is in memory, time is set."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import pytest

from lapse.consumers import ConfigError, Identity, session_reference
from lapse.consumers.frameworks.grpc import AioSessionInterceptor, SessionInterceptor, current_session
from lapse.consumers.testing import MemoryFeed

RAW = "the-token"
REFERENCE = session_reference(RAW)
MINE = (("token", RAW),)
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


def _identify(metadata: Any) -> Identity | None:
    return Identity(metadata["token"], "u-1") if "token" in metadata else None


def _subject() -> bytes:
    session = current_session()
    return session.subject.encode() if session else b"nobody"


class _Counting:
    """Counts what a publisher would join at the edge."""

    def __init__(self) -> None:
        self.touches: list[str] = []

    def touched(self, session: str, subject: str, **_: object) -> None:
        self.touches.append(session)

    def count(self) -> int:
        """Return how many touches there were since the last time."""
        found, self.touches = len(self.touches), []
        return found


class _Threads:
    """The methods of a server of threads."""

    def __init__(self, feed: MemoryFeed) -> None:
        self._feed = feed
        self.seen = threading.Event()

    def one(self, request: bytes, context: Any) -> bytes:
        return _subject()

    def many(self, request: bytes, context: Any) -> Iterator[bytes]:
        yield b"one"
        self._feed.end(REFERENCE, cause="absolute")
        yield b"two"

    def join(self, requests: Iterator[bytes], context: Any) -> bytes:
        return b"+".join(requests)

    def echo(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        yield from requests


class _Loop:
    """Those of a server of asyncio."""

    def __init__(self, feed: MemoryFeed) -> None:
        self._feed = feed

    async def one(self, request: bytes, context: Any) -> bytes:
        return _subject()

    async def many(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"one"
        self._feed.end(REFERENCE, cause="absolute")
        await asyncio.Event().wait()

    async def join(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b"+".join([request async for request in requests])

    async def echo(self, requests: AsyncIterator[bytes], context: Any) -> None:
        async for request in requests:  # one that writes, instead of yielding
            await context.write(request)


def _handlers(methods: Any) -> Any:
    kinds = {"one": "unary_unary", "many": "unary_stream", "join": "stream_unary", "echo": "stream_stream"}
    made = {
        name: getattr(grpc, f"{kind}_rpc_method_handler")(getattr(methods, name)) for name, kind in kinds.items()
    } | {"poll": grpc.unary_unary_rpc_method_handler(methods.one)}
    return [grpc.method_handlers_generic_handler("t.T", made)]


OPTIONS: dict[str, Any] = {"background": ["/t.T/poll"], "on_stale": {"/t.T/one": "deny"}}
Served = tuple[MemoryFeed, Callable[[], int], grpc.aio.Channel]


@pytest.fixture(params=["threads", "loop"])
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    """A server with its feed, the count of its touches since the last time, and a channel to it."""
    feed, counting = MemoryFeed(), _Counting()
    publisher: Any = counting
    if request.param == "threads":
        threaded = SessionInterceptor(guard=feed.sync_guard(), publisher=publisher, identify=_identify, **OPTIONS)
        server: Any = grpc.server(ThreadPoolExecutor(4), interceptors=[threaded])
        server.add_generic_rpc_handlers(_handlers(_Threads(feed)))
    else:
        looped = AioSessionInterceptor(guard=feed.guard(), publisher=publisher, identify=_identify, **OPTIONS)
        server = grpc.aio.server(interceptors=[looped])
        server.add_generic_rpc_handlers(_handlers(_Loop(feed)))
    port = server.add_insecure_port("127.0.0.1:0")
    started = server.start()
    if request.param == "loop":
        await started
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield feed, counting.count, channel
    stopped = server.stop(None)
    if request.param == "loop":
        await stopped
    else:
        stopped.wait()


async def test_a_call_is_a_touch_unless_it_or_its_method_is_background(served: Served) -> None:
    _, touches, channel = served
    one, poll = channel.unary_unary("/t.T/one"), channel.unary_unary("/t.T/poll")  # type: ignore[var-annotated]  # bytes
    assert await one(b"") == b"nobody"
    await poll(b"", metadata=MINE)
    await one(b"", metadata=(*MINE, ("x-lapse-background", "1")))
    assert touches() == 0
    assert await one(b"", metadata=MINE) == b"u-1"
    assert touches() == 1


async def test_streams_of_all_kinds_pass_and_each_message_is_a_touch(served: Served) -> None:
    _, touches, channel = served

    async def requests() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    join, echo = channel.stream_unary("/t.T/join"), channel.stream_stream("/t.T/echo")  # type: ignore[var-annotated]  # bytes
    assert await join(requests(), metadata=MINE) == b"a+b"
    assert touches() == 3  # the call, and its two messages
    assert [part async for part in echo(requests(), metadata=MINE)] == [b"a", b"b"]
    assert touches() == 3


async def test_an_ended_session_is_refused_with_its_cause_by_methods_of_all_kinds(served: Served) -> None:
    feed, _, channel = served
    feed.end(REFERENCE, cause="idle", due_at=1_800_000_000_000)
    join: Any = channel.stream_unary("/t.T/join")
    many: Any = channel.unary_stream("/t.T/many")
    one: Any = channel.unary_unary("/t.T/one")
    for call in (one(b"", metadata=MINE), join(iter(()), metadata=MINE), many(b"", metadata=MINE).read()):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert (refused.value.code(), refused.value.details()) == (UNAUTHENTICATED, "session ended: idle")
        trailing = dict(refused.value.trailing_metadata())
        assert trailing["lapse-cause"] == "idle"
        assert trailing["lapse-due-at"] == "1800000000000"
        assert trailing["lapse-ending"]


async def test_a_stream_ends_with_its_session(served: Served) -> None:
    _, _, channel = served
    many: Any = channel.unary_stream("/t.T/many")
    stream = many(b"", metadata=MINE)
    assert await stream.read() == b"one"
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await asyncio.wait_for(stream.read(), 10)
    assert (ended.value.code(), ended.value.details()) == (UNAUTHENTICATED, "session ended: absolute")
    assert dict(ended.value.trailing_metadata())["lapse-cause"] == "absolute"


async def test_a_stale_guard_does_what_the_method_says(served: Served) -> None:
    feed, _, channel = served
    feed.processor_runs = False
    feed.advance(10_000)
    one: Any = channel.unary_unary("/t.T/one")
    poll: Any = channel.unary_unary("/t.T/poll")
    assert await poll(b"", metadata=MINE) == b"u-1"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await one(b"", metadata=MINE)
    assert dict(refused.value.trailing_metadata())["lapse-cause"] == "unverified"


@pytest.mark.parametrize("wrong", [{"on_stale": "maybe"}, {"on_stale": {"/t.T/one": "no"}}, {"background": "/t.T/one"}])
async def test_wrong_arguments_are_refused(wrong: dict[str, Any]) -> None:
    feed = MemoryFeed()
    with pytest.raises(ConfigError):
        SessionInterceptor(guard=feed.sync_guard(), identify=_identify, **wrong)
    with pytest.raises(ConfigError):
        AioSessionInterceptor(guard=feed.guard(), identify=_identify, **wrong)
