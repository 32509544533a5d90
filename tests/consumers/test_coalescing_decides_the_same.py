"""Does coalescing ever change when a session ends?

Property: the real engine ends the same sessions, with the same instants and starts, whether it is told every touch at
once with what the service knows of the session's start, or what the real outbox (coalescer, packing, one batch in
flight) makes of them, as long as the touch interval plus the publishing delay is below the idle timeout, and the delay
below grace_ms, which the rules give for publishing. And after an outage of the log it ends the same sessions as if
there had been none.
"""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from lapse.consumers.activity.coalescer import Coalescer
from lapse.consumers.activity.outbox import Load, Outbox
from lapse.pipeline.engine import EngineSettings, PartitionEngine
from lapse.schemas import SessionEnded, sign

T0 = 1_700_000_000_000
KEY = b"a key of the tests, 32 bytes long"
TOPIC = "lapse.activity"
SESSIONS = tuple(letter * 22 for letter in "abc")
GRACE_MS = 250
TAIL_MS = 8_000  # past the longest hold

Stamped = tuple[int, bytes]
Touches = list[tuple[int, str]]
Starts = dict[str, int | None]


class _Record:
    def __init__(self, offset: int, timestamp: int, value: bytes) -> None:
        self.offset = offset
        self.timestamp = timestamp
        self.value: bytes | None = value


class _Batch:
    def __init__(self) -> None:
        self.values: list[bytes] = []

    def append(self, *, timestamp: int | None, key: bytes | None, value: bytes | None) -> object:
        assert value is not None
        self.values.append(value)
        return self


def _single(session: str, **fields: Any) -> bytes:
    return orjson.dumps(
        {"type": "session.touched", "session": session, "subject": "u", "service": "web", "age_ms": 0, **fields}
    )


def _told_all(touches: Touches, starts: Starts) -> list[Stamped]:
    ages = [None if (start := starts[session]) is None else at - start for at, session in touches]
    return [(at, _single(session, session_age_ms=age)) for (at, session), age in zip(touches, ages, strict=True)]


def _told_coalesced(
    touches: Touches,
    starts: Starts,
    interval_ms: int,
    delay_of: Callable[[int], int],
    outage: tuple[int, int] = (0, 0),
) -> list[Stamped]:
    """Run the outbox in virtual time, as the publisher's pump does; return (stamp, value) of what it wrote.

    A batch is appended when it is sent; its acknowledgement takes delay_of(its number), and the next batch waits for
    it. A batch that is sent in the outage is lost after delay_of.
    """
    now = 0
    coalescer = Coalescer(interval_ms)
    outbox = Outbox(coalescer, service="web", touch_interval_ms=interval_ms, clock=lambda: now)
    written: list[Stamped] = []
    flight: tuple[int, Load, bool] | None = None
    batches = 0
    todo = list(touches)
    while todo or coalescer.unsent or coalescer.next_at() is not None:
        events = [at for at, _ in todo[:1]]
        cooled_at = coalescer.next_at()
        events += [] if cooled_at is None else [int(cooled_at)]
        events += [] if flight is None else [flight[0]]
        now = max(now, min(events)) if events else now
        if flight is not None and flight[0] <= now:
            _, load, landed = flight
            flight = None
            (outbox.landed if landed else outbox.lost)(load)
        while todo and todo[0][0] <= now:
            at, session = todo.pop(0)
            coalescer.touch(session, "u", None, at, starts[session])
        if outbox.place(1) and flight is None:
            batch = _Batch()
            load = outbox.load(0, batch)
            landed = not outage[0] <= now < outage[1]
            written += [(now, value) for value in batch.values] if landed else []
            flight = (now + delay_of(batches), load, landed)
            batches += 1
    return written


def _endings(
    records: Iterable[Stamped], idle_ms: int, until: int, outage: tuple[int, int] = (0, 0)
) -> dict[str, SessionEnded]:
    """Return the endings by session, of a log with these records and a tick a second (none in the outage)."""
    engine = PartitionEngine(
        EngineSettings(partition=0, partitions=1, topic=TOPIC, worker_key=KEY, grace_ms=GRACE_MS, clock="append")
    )
    log = [(0, _policy(idle_ms))] + [(at, value) for at, value in records]
    ticks = list(range(0, outage[0], 1_000)) + list(range(outage[1], until, 1_000))
    log += [(at, _tick(at, up_ms=at - outage[1] if at >= outage[1] else at + 10_000)) for at in ticks]
    log.sort(key=lambda entry: entry[0])
    endings: dict[str, SessionEnded] = {}
    for offset, (at, value) in enumerate(log):
        for ending in engine.apply([_Record(offset, T0 + at, value)]).endings:
            assert ending.session not in endings
            endings[ending.session] = ending
    return endings


def _signed(record: dict[str, Any]) -> bytes:
    return orjson.dumps({**record, "mac": sign(record, topic=TOPIC, partition=0, key=KEY)})


def _policy(idle_ms: int) -> bytes:
    policy = {"type": "policy", "name": "default", "idle_ms": idle_ms, "absolute_ms": None}
    return _signed({"type": "policy.adopted", "version": 1, "policy": policy})


@cache
def _tick(at: int, up_ms: int) -> bytes:
    return _signed(
        {
            "type": "clock.tick",
            "epoch": 1,
            "owner": "w",
            "mono_ms": at,
            "wall_at": T0 + at,
            "prev_ms": None,
            "ack_ms": None,
            "up_ms": up_ms,
        }
    )


@st.composite
def _runs(draw: st.DrawFn) -> tuple[Touches, Starts, int, int, int]:
    """Touches of a few sessions, when those started where the service knows it, the interval, the longest delay, an
    idle timeout just above both, or well above.
    """
    interval = draw(st.integers(200, 6_000))
    delay = draw(st.integers(0, min(interval, GRACE_MS - 1)))
    idle = interval + delay + draw(st.one_of(st.integers(1, 20), st.integers(1, 10_000)))
    gap = st.one_of(
        st.integers(0, 2 * idle),
        st.sampled_from([interval - 1, interval, interval + 1, idle - 1, idle, idle + 1]),
        st.integers(0, 50),
    )
    touches: Touches = []
    starts: Starts = {}
    for session in SESSIONS:
        at = draw(st.integers(0, interval))
        starts[session] = draw(st.one_of(st.none(), st.integers(-100_000, at)))
        for step in draw(st.lists(gap, max_size=12)):
            touches.append((at, session))
            at += step
    return sorted(touches), starts, interval, delay, idle


@settings(max_examples=200, deadline=None)
@given(_runs(), st.randoms(use_true_random=False))
def test_idle_decisions_are_those_over_all_touches(run: tuple[Touches, Starts, int, int, int], chance: Any) -> None:
    touches, starts, interval, delay, idle = run
    until = max((at for at, _ in touches), default=0) + idle + TAIL_MS
    coalesced = _told_coalesced(touches, starts, interval, lambda _: chance.randint(0, delay))
    expected = _endings(_told_all(touches, starts), idle, until)
    found = _endings(coalesced, idle, until)
    assert {s: (e.due_at, e.last_seen_at, e.cause) for s, e in found.items()} == {
        s: (e.due_at, e.last_seen_at, e.cause) for s, e in expected.items()
    }
    known = {session: T0 + start for session, start in starts.items() if start is not None and session in expected}
    assert {session: found[session].started_at for session in known} == known
    assert set(expected) == {session for _, session in touches}  # everyone ends, after all


@settings(max_examples=100, deadline=None)
@given(_runs(), st.integers(0, 20_000), st.integers(4_000, 60_000))
def test_an_outage_of_the_log_ends_nobody_who_was_active(
    run: tuple[Touches, Starts, int, int, int], begins_at: int, length: int
) -> None:
    touches, starts, interval, _, idle = run
    outage = (begins_at, begins_at + length)
    watched_until = outage[1] + 4_000  # the hold lasts 5 s: a session that is live then must not have ended
    touches = [(at, session) for at, session in touches if at < outage[1]]
    coalesced = _told_coalesced(touches, starts, interval, lambda _: 50, outage)
    held = _endings(coalesced, idle, watched_until, outage)
    truth = _endings(_told_all(touches, starts), idle, watched_until)
    assert set(held) <= set(truth)
    later = outage[1] + idle + TAIL_MS
    assert set(_endings(coalesced, idle, later, outage)) == {session for _, session in touches}
