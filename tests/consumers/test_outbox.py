"""What goes into a partition's next batch? Batches of a set size; what is loaded, lost and left over is compared."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lapse.consumers.activity.coalescer import Coalescer
from lapse.consumers.activity.outbox import Load, Outbox
from lapse.consumers.activity.packing import Event
from lapse.schemas import (
    RECORD_BYTES_MAX,
    PackedTouches,
    SessionClosed,
    SessionStarted,
    SessionTouched,
    parse_activity,
    parse_packed_entry,
)


class _Batch:
    """A batch for so many records."""

    def __init__(self, room: int = 1_000) -> None:
        self.room = room
        self.records: list[tuple[bytes | None, bytes]] = []

    def append(self, *, timestamp: int | None, key: bytes | None, value: bytes | None) -> object | None:
        if len(self.records) == self.room or value is None:
            return None
        self.records.append((key, value))
        return self


class _Bench:
    def __init__(self) -> None:
        self.now = 0.0
        self.coalescer = Coalescer(5_000)
        self.outbox = Outbox(self.coalescer, service="s", touch_interval_ms=5_000, clock=lambda: self.now)

    def open(self, session: str) -> None:
        self.outbox.add(Event(SessionStarted(session=session, subject="u", service="s", age_ms=0), self.now))

    def close(self, session: str) -> None:
        self.coalescer.hurry(session)
        self.outbox.add(Event(SessionClosed(session=session, subject="u", service="s", age_ms=0), self.now))

    def load(self, room: int = 1_000, partition: int = 0) -> tuple[Load, list[tuple[str, str]]]:
        batch = _Batch(room)
        load = self.outbox.load(partition, batch)
        told = []
        for _, value in batch.records:
            record = parse_activity(value)
            if isinstance(record, PackedTouches):
                told += [("touched", parse_packed_entry(entry, 0).session) for entry in record.touches]
            elif isinstance(record, SessionStarted | SessionTouched | SessionClosed):
                told.append((record.type.removeprefix("session."), record.session))
        return load, told


def _ref(n: int) -> str:
    return f"{n:022d}"


def test_openings_come_before_touches_and_closings_last() -> None:
    bench = _Bench()
    bench.close(_ref(3))
    bench.coalescer.touch(_ref(2), "u", None, 0)
    bench.open(_ref(1))
    assert bench.outbox.place(1) == [0]
    _, told = bench.load()
    assert told == [("started", _ref(1)), ("touched", _ref(2)), ("closed", _ref(3))]


def test_a_full_batch_leaves_the_later_steps_for_the_next() -> None:
    bench = _Bench()
    bench.close(_ref(3))
    bench.coalescer.touch(_ref(2), "u", None, 0)
    bench.open(_ref(1))
    told = []
    for _ in range(3):
        bench.outbox.place(1)
        load, part = bench.load(room=1)
        bench.outbox.landed(load)
        told.append(part)
    assert told == [[("started", _ref(1))], [("touched", _ref(2))], [("closed", _ref(3))]]
    assert bench.outbox.place(1) == []


def test_what_was_lost_comes_again_in_its_order() -> None:
    bench = _Bench()
    for n in range(3):
        bench.open(_ref(n))
    bench.close(_ref(9))
    bench.coalescer.touch(_ref(5), "u", None, 0)
    bench.outbox.place(1)
    load, first = bench.load()
    bench.outbox.lost(load)
    assert bench.outbox.events_kept == 4
    bench.outbox.place(1)
    load, again = bench.load()
    assert again == first
    bench.outbox.landed(load)
    assert (bench.outbox.events_kept, bench.coalescer.unsent) == (0, 0)


def test_another_number_of_partitions_places_everything_anew() -> None:
    bench = _Bench()
    for n in range(20):
        bench.coalescer.touch(_ref(n), f"u-{n}", None, 0)
        bench.outbox.add(Event(SessionStarted(session=_ref(n), subject=f"u-{n}", service="s", age_ms=0), 0.0))
    assert bench.outbox.place(1) == [0]
    told = []
    for partition in bench.outbox.place(4):
        told += bench.load(partition=partition)[1]
    assert sorted(told) == sorted([("started", _ref(n)) for n in range(20)] + [("touched", _ref(n)) for n in range(20)])


@settings(deadline=None)
@given(st.integers(1, 1_300), st.integers(1, 256), st.sampled_from(["u", "ü", "\U0001f600"]))
def test_packed_records_keep_the_limits_of_the_wire_whatever_the_names(count: int, length: int, letter: str) -> None:
    bench = _Bench()
    for n in range(count):
        bench.coalescer.touch(_ref(n), letter * length, "t" * length, 0)
    told: list[str] = []
    while bench.outbox.place(1):
        batch = _Batch()
        load = bench.outbox.load(0, batch)
        for _, value in batch.records:
            assert len(value) <= RECORD_BYTES_MAX
            record = parse_activity(value)
            if isinstance(record, PackedTouches):
                told += [parse_packed_entry(entry, index).session for index, entry in enumerate(record.touches)]
            else:
                assert isinstance(record, SessionTouched)
                told.append(record.session)
        bench.outbox.landed(load)
    assert told == [_ref(n) for n in range(count)]
