"""Does the publisher serve threaded and pre-forked services, and does a thread with a loop leave nothing? A real fork.

No broker is reached.
"""

import asyncio
import logging
import os
import socket
import threading
import time

import pytest

from lapse.consumers import (
    SyncActivityPublisher,
    session_reference,
)
from lapse.consumers.loop_thread import LoopThread
from lapse.consumers.testing import SyncMemoryPublisher
from lapse.schemas import SessionClosed, SessionStarted, SessionTouched

from tests.consumers.forking import in_child
from tests.consumers.threads import together, until

A, B = session_reference("a"), session_reference("b")
THREADS, CALLS = 8, 2_000


# The publisher


def test_notes_of_many_threads_are_all_taken() -> None:
    publisher = SyncMemoryPublisher()

    def tell(name: str) -> None:
        for number in range(200):
            publisher.touched(session_reference(f"{name}-{number}"), "u")

    together([threading.Thread(target=tell, args=(str(number),)) for number in range(THREADS)])
    assert publisher.stats.touches == THREADS * 200
    told = publisher.take()
    assert len({activity.session for activity in told}) == THREADS * 200


def test_no_method_waits_or_raises_without_a_broker() -> None:
    publisher = SyncActivityPublisher("127.0.0.1:1", service="shop", delivery_timeout_ms=100)
    took = []
    for number in range(2_000):
        session = session_reference(f"s-{number}")
        for note in (publisher.started, publisher.touched, publisher.refreshed, publisher.elevated, publisher.closed):
            began = time.thread_time()
            note(session, "u")
            took.append(time.thread_time() - began)
    publisher.touched(None, None)  # type: ignore[arg-type]  # what is tested
    publisher.touched(A, "u", hold_ms="x")  # type: ignore[arg-type]  # likewise
    assert sorted(took)[-10] < 0.01  # but for a collection of garbage, which comes to any call
    began = time.monotonic()
    publisher.stop(0.2)
    assert time.monotonic() - began < 8
    assert publisher.stats.malformed == 2
    assert publisher.stats.waiting == publisher.waiting > 0


def test_after_stop_it_says_that_nothing_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    publisher = SyncActivityPublisher("127.0.0.1:1", service="shop", delivery_timeout_ms=100)
    publisher.start()
    publisher.stop(0.0)
    with caplog.at_level(logging.WARNING, "lapse.consumers"):
        publisher.touched(A, "u")
        publisher.closed(A, "u")
    assert publisher.stats.after_stop == 2
    assert "after stop()" in caplog.text
    publisher.start()
    publisher.closed(A, "u")
    until(lambda: publisher.waiting == 1)
    publisher.stop(0.0)


def test_the_sync_memory_publisher_tells_what_the_other_does() -> None:
    publisher = SyncMemoryPublisher()
    with publisher:
        publisher.started(A, "u", policy="p")
        publisher.touched(A, "u", hold_ms=600_000)
        publisher.clock.advance(10)
        publisher.closed(A, "u")
        assert publisher.flush()
    publisher.closed(B, "u")
    told = publisher.take()
    assert [type(activity) for activity in told] == [SessionStarted, SessionTouched, SessionClosed]
    assert [activity.age_ms for activity in told] == [10, 10, 0]
    assert isinstance(told[1], SessionTouched)
    assert told[1].hold_ms == 600_000
    assert publisher.stats.after_stop == 1


def test_a_child_tells_its_own_and_leaves_the_parents_notes_to_the_parent() -> None:
    publisher = SyncActivityPublisher("127.0.0.1:1", service="shop", delivery_timeout_ms=100)
    publisher.closed(A, "u")
    until(lambda: publisher.waiting == 1)

    def child() -> tuple[int, int, int]:
        before = publisher.waiting
        publisher.touched(A, "u")
        publisher.closed(B, "u")
        after = publisher.waiting
        publisher.stop(0.0)
        publisher.touched(A, "u")
        return before, after, publisher.stats.after_stop

    assert in_child(child) == (0, 2, 1)
    publisher.closed(B, "u")
    until(lambda: publisher.waiting == 2)
    assert publisher.stats.after_stop == 0
    publisher.stop(0.0)


# The thread


def test_a_living_child_keeps_no_connection_of_the_parent_open_and_disturbs_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = LoopThread("test")
        reader, writer = thread.call(asyncio.open_connection(*server.getsockname()[:2]), 10.0)
        connection, _ = server.accept()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            thread.abandon()
            os.close(writing)
            os.read(reading, 1)  # it lives until the parent closes its end
            os._exit(0)
        try:
            connection.sendall(b"hello\n")
            assert thread.call(reader.readline(), 10.0) == b"hello\n"  # the parent's epoll is whole
            thread.loop.call_soon_threadsafe(writer.close)
            connection.settimeout(10.0)
            assert connection.recv(1) == b""  # and the end of the connection is seen although the child lives
        finally:
            os.close(writing)
            os.close(reading)
            os.waitpid(child, 0)
            connection.close()
            thread.stop()


def test_a_thread_that_ends_cancels_what_runs_in_it() -> None:
    thread = LoopThread("test")
    cancelled = threading.Event()

    async def run() -> None:
        try:
            await asyncio.sleep(3_600)
        finally:
            cancelled.set()

    thread.submit(run())
    thread.call(asyncio.sleep(0), 10.0)
    thread.stop()
    assert cancelled.is_set()
    with pytest.raises(RuntimeError):
        thread.call(asyncio.sleep(0), 1.0)
