"""Do guard and publisher serve threaded and pre-forked services? Real threads, and a real fork.

The guard reads the in-memory feed, in its own thread as it would read a broker; the publisher has no broker to reach.
"""

import asyncio
import contextlib
import inspect
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lapse.consumers import (
    ActivityPublisher,
    Cause,
    ConfigError,
    Ended,
    Guard,
    SyncActivityPublisher,
    SyncGuard,
    session_reference,
)
from lapse.consumers.frameworks.identity import ActiveSession
from lapse.consumers.frameworks.streams import Stream
from lapse.consumers.guard import ALLOWED
from lapse.consumers.guard.feed import Feed
from lapse.consumers.guard.intake import Intake
from lapse.consumers.testing import MemoryFeed

from tests.consumers.forking import in_child
from tests.consumers.threads import together, until

A, B = session_reference("a"), session_reference("b")
THREADS, CALLS = 8, 2_000


@pytest.fixture
def feed() -> MemoryFeed:
    return MemoryFeed()


@contextlib.contextmanager
def _guarded(feed: Feed, memory: MemoryFeed, **options: object) -> Iterator[SyncGuard]:
    guard = SyncGuard(service="shop", feed=feed, clock=memory.clock, **options)  # type: ignore[arg-type]
    try:
        yield guard
    finally:
        guard.stop()


@pytest.mark.parametrize(("threaded", "plain"), [(SyncGuard, Guard), (SyncActivityPublisher, ActivityPublisher)])
def test_the_arguments_of_those_in_threads_are_those_of_the_others(threaded: type, plain: type) -> None:
    assert inspect.signature(threaded) == inspect.signature(plain)


# The guard


def test_the_first_check_of_a_process_starts_it_and_is_right(feed: MemoryFeed) -> None:
    feed.end(A)
    with _guarded(feed, feed) as guard:
        assert not guard.fresh
        assert guard.check(A).cause == Cause.IDLE
        assert guard.check(B) is ALLOWED
        assert guard.why_stale is None
        assert guard.entries == 1


def test_many_threads_may_ask_first_and_all_are_counted(feed: MemoryFeed) -> None:
    feed.end(A)
    answers: set[tuple[bool, bool]] = set()
    with _guarded(feed, feed) as guard:

        def ask() -> None:
            for _ in range(CALLS):
                answers.add((guard.check(A).allowed, guard.check(B).allowed))

        together([threading.Thread(target=ask) for _ in range(THREADS)])
        assert answers == {(False, True)}
        assert (guard.checks, guard.refused) == (2 * THREADS * CALLS, THREADS * CALLS)
        assert len([t for t in threading.enumerate() if t.name == "lapse-guard-shop"]) == 1


def test_asking_goes_on_while_endings_are_applied(feed: MemoryFeed) -> None:
    """What was refused once is refused at every later check, by whichever thread."""
    sessions = [session_reference(f"s-{number}") for number in range(2_000)]
    applied = [0]
    wrong: list[str] = []
    with _guarded(feed, feed) as guard:
        guard.start()

        def ask() -> None:
            while applied[0] < len(sessions):
                upto = applied[0]
                for session in sessions[max(0, upto - 20) : upto]:
                    decision = guard.check(session)
                    if decision.allowed or decision.due_at is None or decision.deny_until is None:
                        wrong.append(session)

        askers = [threading.Thread(target=ask) for _ in range(4)]
        for thread in askers:
            thread.start()
        for number, session in enumerate(sessions):
            feed.end(session)
            applied[0] = number + 1
        for thread in askers:
            thread.join()
    assert not wrong


def test_it_is_stale_as_the_other_and_counts(feed: MemoryFeed) -> None:
    with _guarded(feed, feed, on_stale="deny") as guard:
        assert guard.check(A)
        feed.processor_runs = False
        feed.advance(10_000)
        assert guard.check(A).stale
        assert guard.check(A, on_stale="allow").allowed
        assert (guard.allowed_while_stale, guard.refused) == (1, 1)
        assert guard.stale_ms >= 10_000
        assert guard.why_stale is not None
        assert guard.status().allowed_while_stale == 1


def test_hooks_run_in_the_guards_thread_and_may_be_cancelled(feed: MemoryFeed) -> None:
    heard: list[tuple[str, str]] = []

    def hear(ended: Ended) -> None:
        heard.append((ended.session, threading.current_thread().name))

    with _guarded(_InLoop(feed), feed) as guard:
        cancelled = guard.on_ended(hear, A)
        cancelled.cancel()
        guard.on_ended(hear, B)
        guard.on_ended(hear)
        feed.end(A)
        feed.end(B)
        guard.on_ended(hear, A)  # refused already: told soon
        until(lambda: len(heard) == 4)
    assert sorted(heard) == sorted([(A, "lapse-guard-shop"), (B, "lapse-guard-shop")] * 2)


async def _nothing(_: Ended) -> None:
    await asyncio.sleep(0)


def test_a_hook_may_ask_the_guard_and_may_be_asynchronous(feed: MemoryFeed) -> None:
    answers: list[bool] = []
    feed.end(A)
    with _guarded(_InLoop(feed), feed) as guard:
        guard.on_ended(_nothing)
        guard.on_ended(lambda ended: answers.append(guard.check(ended.session).allowed), A)
        guard.on_ended(lambda ended: answers.append(guard.check(ended.session).allowed), B)
        feed.end(B)
        until(lambda: answers == [False, False])


@contextlib.contextmanager
def _busy(guard: SyncGuard) -> Iterator[None]:
    """Keep the guard's thread from doing anything."""
    guard.start()
    assert guard._thread is not None
    let_go = threading.Event()
    guard._thread.loop.call_soon_threadsafe(let_go.wait, 60.0)
    try:
        yield
    finally:
        let_go.set()


def test_hooks_are_registered_and_cancelled_while_the_guards_thread_is_busy(feed: MemoryFeed) -> None:
    heard: list[str] = []
    with _guarded(_InLoop(feed), feed) as guard:
        with _busy(guard):
            guard.on_ended(lambda ended: heard.append(f"kept {ended.session}"), A)
            guard.on_ended(lambda ended: heard.append(f"all {ended.session}"))
            for session in (A, None):
                guard.on_ended(lambda _: heard.append("cancelled"), session).cancel()
        feed.end(A)
        feed.end(B)
        until(lambda: len(heard) == 3)
        assert heard == [f"kept {A}", f"all {A}", f"all {B}"]


def test_no_call_comes_after_cancel_and_nothing_is_left_of_it(feed: MemoryFeed) -> None:
    heard: list[str] = []
    with _guarded(_InLoop(feed), feed) as guard:
        hook = guard.on_ended(lambda ended: heard.append(ended.session), A)
        until(lambda: bool(guard._inner._hooks))
        with _busy(guard):
            feed.end(A)
            hook.cancel()  # the ending waits in front of it
            hook.cancel()
        until(lambda: not guard._inner._hooks)
        assert guard._inner.entries == 1
        assert heard == []


def test_a_stream_is_served_and_closed_while_the_guards_thread_is_busy(feed: MemoryFeed) -> None:
    closed: list[bool] = []

    class Parts:
        def __iter__(self) -> Iterator[bytes]:
            return iter((b"one", b"two"))

        def close(self) -> None:
            closed.append(True)

    over = threading.Event()
    with _guarded(_InLoop(feed), feed) as guard:
        session = ActiveSession(A, "u", None, None, guard.check(A))
        with _busy(guard):
            stream = Stream(Parts(), guard, session, over, lambda: None)
            assert list(stream) == [b"one", b"two"]
            stream.close()
            assert closed == [True]
        feed.end(A)
        guard.on_ended(lambda _: over.set(), B)
        feed.end(B)
        assert over.wait(10.0)
        assert not guard._inner._hooks


def test_a_stream_ends_although_the_guards_thread_was_busy_when_it_began(feed: MemoryFeed) -> None:
    over = threading.Event()
    with _guarded(_InLoop(feed), feed) as guard:
        session = ActiveSession(A, "u", None, None, guard.check(A))
        with _busy(guard):
            feed.end(A)  # known to nobody yet
            stream = Stream(iter((b"one", b"two", b"three")), guard, session, over, lambda: None)
            assert next(stream) == b"one"
        assert over.wait(10.0)
        assert list(stream) == []


def test_after_stop_it_goes_on_answering_and_may_be_started_again(feed: MemoryFeed) -> None:
    feed.end(A)
    with _guarded(feed, feed) as guard:
        guard.start()
        guard.stop()
        guard.stop()
        assert not guard.check(A)
        feed.end(B)
        assert guard.check(B)
        guard.start()
        assert not guard.check(B)
        assert not guard.check(A)


def test_without_a_broker_the_first_check_waits_no_longer_than_it_was_told() -> None:
    guard = SyncGuard("127.0.0.1:1", service="shop", on_stale="deny", ready_timeout_s=0.2, report=False)
    began = time.monotonic()
    assert guard.check(A).stale
    assert time.monotonic() - began < 5
    guard.stop()


def test_a_child_starts_anew_and_shares_nothing(feed: MemoryFeed) -> None:
    feed.end(A)
    told: list[str] = []
    with _guarded(_InLoop(feed), feed) as guard:
        guard.on_ended(lambda ended: told.append(ended.session))
        cancelled = guard.on_ended(lambda _: told.append("cancelled in the child"))
        assert not guard.check(A)

        def child() -> tuple[int, int, bool, bool, list[str], str]:
            began = (guard.checks, guard.entries)
            cancelled.cancel()
            refused = not guard.check(A)
            feed.end(B)
            until(lambda: told == [B])
            instance = guard.status().instance
            guard.stop()
            return (*began, refused, not guard.check(B), told, instance)

        checks, entries, refused, learned, heard, instance = in_child(child)
        assert (checks, entries) == (0, 0)  # nothing is taken over
        assert refused  # and it is right all the same, from its first check
        assert learned
        assert heard == [B]
        assert instance != guard.status().instance
        assert told == []
        cancelled.cancel()
        assert guard.check(B)  # the child's feed is the child's
        feed.end(B)  # the parent's thread goes on
        until(lambda: told == [B])


def test_a_guard_that_was_never_started_may_be_forked_too(feed: MemoryFeed) -> None:
    feed.end(A)
    with _guarded(feed, feed) as guard:
        assert in_child(lambda: guard.check(A).cause) == Cause.IDLE
        assert not guard.check(A)


def test_a_fork_while_a_thread_starts_it_does_not_hang_the_child(feed: MemoryFeed) -> None:
    slow = _Slow(feed)
    with _guarded(slow, feed) as guard:
        starter = threading.Thread(target=guard.start)
        starter.start()
        slow.entered.wait(10)
        slow.hold.set()  # the child's copy of the feed is not slow any more; the parent's lock was held at the fork
        assert in_child(lambda: guard.check(A).allowed)
        starter.join()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bootstrap_servers", None),
        ("service", ""),
        ("instance", ""),
        ("prefix", "no topic's"),
        ("stale_after_ms", 1),
        ("on_stale", "maybe"),
        ("session_life_max_ms", 0),
    ],
)
def test_settings_out_of_range_are_refused_when_it_is_made(name: str, value: object) -> None:
    given: dict[str, Any] = {"bootstrap_servers": "localhost:1", "service": "shop", name: value}
    with pytest.raises(ConfigError, match=name):
        SyncGuard(**given)


class _InLoop:
    """The in-memory feed, its records applied in the guard's thread as a broker's are."""

    def __init__(self, feed: MemoryFeed) -> None:
        self._feed = feed

    async def start(self, intake: Intake) -> None:
        loop = asyncio.get_running_loop()
        apply = intake.apply

        def elsewhere(*args: Any) -> None:
            if threading.current_thread().name.startswith("lapse-guard"):
                apply(*args)
            else:
                loop.call_soon_threadsafe(apply, *args)

        intake.apply = elsewhere  # type: ignore[assignment, method-assign]
        await self._feed.start(intake)

    async def stop(self) -> None:
        await self._feed.stop()


class _Slow:
    """A feed whose start takes until it is let go."""

    def __init__(self, feed: MemoryFeed) -> None:
        self._feed = feed
        self.entered = threading.Event()
        self.hold = threading.Event()

    async def start(self, intake: Intake) -> None:
        self.entered.set()
        await asyncio.to_thread(self.hold.wait, 10)
        await self._feed.start(intake)

    async def stop(self) -> None:
        await self._feed.stop()
