"""Do the rules hold when the broker's clock does not? The engine under the disciplined clock, record by record.

Method: an owner whose ticks are true (its monotonic clock is the test's time, acknowledged after 2 ms) writes into a
log whose append times are off by what the test sets. Whole estates in true time are in tests/simulation/clock.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from lapse.pipeline.engine import Effects, EngineSettings, PartitionEngine, waiting
from lapse.pipeline.engine.log_clock import DisciplinedClock
from lapse.schemas import ClockTick, SessionEnded

from tests.engine.records import (
    T0,
    JsonObject,
    Log,
    closed,
    default_policy,
    entry,
    packed,
    ref,
    revocation_ordered,
    settings,
    started,
    tick,
    touched,
)

IDLE, GRACE, HOUR = 10_000, 250, 3_600_000


class Stepped:
    """A log under a broker whose clock can be set.

    Attributes:
        off: how far the broker's clock is from the truth.
        up_ms: what ticks say of the owner's appends.
    """

    def __init__(self, **changes: Any) -> None:
        self.settings: EngineSettings = settings(clock="disciplined", **changes)
        self.engine = PartitionEngine(self.settings)
        self.log = Log(self.settings)
        self.off = 0
        self.up_ms = 10_000_000
        self.state: list[tuple[bytes, bytes | None]] = []
        self.seen = Effects()
        self._mono = 0
        self.add(0, default_policy(IDLE, None))
        self.ticks(0, 5)

    def add(self, at_ms: int, value: JsonObject) -> Effects:
        """Append a record at the true time, and apply it."""
        effects = self.engine.apply([self.log.add(at_ms + self.off, value)])
        self.seen.endings.extend(effects.endings)
        self.seen.alarms += effects.alarms
        self.seen.dead_letters += effects.dead_letters
        return effects

    def ticks(self, *at_ms: int) -> None:
        """Let the owner tick at these times."""
        for at in at_ms:
            before = self._mono
            first = before == 0
            self.add(
                at, tick(at, up_ms=self.up_ms, prev_ms=None if first else before, ack_ms=None if first else before + 2)
            )
            self._mono = at

    def tick_until(self, at_ms: int) -> None:
        """Let the owner tick once a second."""
        while self._mono < at_ms:
            self.ticks(min(self._mono + 1000, at_ms))

    def touch_and_go_on(self, at_ms: int, **fields: Any) -> None:
        """Let the only session be touched, and the owner decide whatever there is to decide."""
        self.add(at_ms, touched(**fields))
        self.ticks(at_ms + 10, at_ms + 20, at_ms + 30)

    @property
    def ending(self) -> SessionEnded:
        """Return the one ending that came out."""
        (ending,) = self.seen.endings
        return ending

    def last_seen(self) -> int:
        """Return the session's last_seen_at, ms after T0."""
        table = self.engine.sessions.table
        return table.last_seen_at[table.slot_of[ref("s")]] - T0


@pytest.fixture
def log() -> Stepped:
    """Give a log with one session that started at 1000."""
    stepped = Stepped()
    stepped.add(1000, started())
    stepped.tick_until(5000)
    return stepped


def test_only_ticks_end_sessions(log: Stepped) -> None:
    """A service's record moves no time: its stamp is only what the broker says."""
    log.tick_until(10_900)
    log.add(11_300, started("other", subject="u-2"))
    assert log.seen.endings == []
    log.ticks(11_400)
    assert (log.ending.cause, log.ending.due_at) == ("idle", T0 + 11_000)
    assert log.ending.decided_at == T0 + 11_400


@pytest.mark.parametrize("step", [HOUR, 8 * 24 * HOUR, 5000])
def test_a_step_forward_ends_nobody_and_costs_nothing(log: Stepped, step: int) -> None:
    """What comes after it waits, is applied when it is decided, and counts; log time goes on as before."""
    log.off = step
    log.add(6000, touched())
    assert log.engine.waiting == 1
    assert log.engine.next_due_at() == log.engine.clock.time, "the owner is to tick at once"
    log.ticks(6010, 6020)
    (alarm,) = log.seen.alarms
    assert alarm.kind == "forward"
    assert abs(alarm.moved_ms - step) <= 10
    assert log.engine.waiting == 0
    assert 6000 <= log.last_seen() <= 6020
    log.tick_until(16_100)
    assert log.seen.endings == []
    log.tick_until(16_500)
    assert log.ending.cause == "idle"


@pytest.mark.parametrize("step", [-HOUR, -8 * 24 * HOUR, -5000])
def test_a_step_back_ends_nobody_early_and_time_goes_on(log: Stepped, step: int) -> None:
    """Append times that fell say nothing: what came since gets the stamp of when it was decided."""
    log.off = step
    log.touch_and_go_on(6000)
    assert [alarm.kind for alarm in log.seen.alarms] == ["back"]
    assert 6000 <= log.last_seen() <= 6030
    log.tick_until(15_900)
    assert log.seen.endings == []
    log.tick_until(16_500)
    assert log.ending.cause == "idle"


def test_steps_one_way_and_back_leave_log_time_where_it_was(log: Stepped) -> None:
    """Each is taken out; what is left is some milliseconds of what brackets leave open."""
    for off in (HOUR, 0, -HOUR, 0):
        log.off = off
        at = log._mono + 1000
        log.touch_and_go_on(at)
        log.tick_until(at + 3000)
    assert len(log.seen.alarms) == 4
    assert abs(log.engine.clock_offset_ms) <= 60
    assert log._mono - 60 <= log.engine.clock.time - T0 <= log._mono


def test_a_touch_that_only_its_stamp_calls_late_waits_and_counts_if_the_stamp_lied(log: Stepped) -> None:
    """A step too small to be suspicious: what it would spoil waits all the same."""
    log.tick_until(10_900)
    log.off = 1500
    log.touch_and_go_on(10_950)  # in truth 50 ms before its due; by its stamp long after it
    assert log.engine.waiting == 0
    log.tick_until(12_000)
    assert log.seen.endings == []
    assert log.last_seen() >= 10_950


def test_a_touch_that_is_late_waits_and_is_late(log: Stepped) -> None:
    """Confirmed, the stamp decides as it says: nothing is revived."""
    log.tick_until(10_900)
    log.add(11_260, touched())
    assert log.engine.waiting == 1
    log.ticks(11_270, 11_280)
    assert log.engine.waiting == 0
    assert (log.ending.cause, log.ending.last_seen_at) == ("idle", T0 + 1000)


def test_a_logout_in_a_step_is_a_logout(log: Stepped) -> None:
    """It would be called past the session's end by its stamp."""
    log.off = HOUR
    log.add(6000, closed())
    log.ticks(6010, 6020)
    assert log.ending.cause == "closed"


def test_an_outage_is_no_step(log: Stepped) -> None:
    """A jump waits too, but the clock decides that it was real, and a hold begins at it as ever."""
    log.up_ms = 0
    log.add(60_000, touched(age_ms=50_500, since_ms=50_500))
    assert log.engine.waiting == 1
    log.ticks(60_010, 60_020, 60_030)
    assert log.engine.waiting == 0
    assert log.seen.alarms == []
    assert log.engine.sessions.hold.on
    assert log.last_seen() == 9500


@pytest.mark.parametrize(("up_ms", "held"), [(30, True), (10_000_000, False)])
def test_an_outage_that_a_step_back_hides_is_held_all_the_same(log: Stepped, up_ms: int, held: bool) -> None:
    """No jump of the stamps is long enough to begin a hold: only what the owner says of its appends tells."""
    log.up_ms = up_ms
    log.off = -4_000
    log.ticks(10_510, 10_520, 10_530)
    stamps = [record.timestamp for record in log.log.records[-4:]]
    assert all(after - before <= log.settings.gap_ms for before, after in pairwise(stamps))
    assert len(log.seen.alarms) == 1
    assert log.engine.sessions.hold.on is held
    log.touch_and_go_on(11_000, age_ms=2_000, since_ms=4_000)
    assert log.seen.endings == []


def test_an_outage_of_several_silences_is_no_step(log: Stepped) -> None:
    """Each record keeps the instant at which it was appended, not that of the decision."""
    log.up_ms = 0
    log.add(20_000, started("t"))
    log.add(30_000, started("u"))
    log.ticks(30_010, 30_020, 30_030)
    table = log.engine.sessions.table
    assert log.engine.waiting == 0
    assert log.seen.alarms == []
    assert [table.started_at[table.slot_of[ref(name)]] - T0 for name in "tu"] == [20_000, 30_000]


def test_a_checkpoint_holds_nothing_of_what_waits(log: Stepped) -> None:
    """The input is read again from the first record that waits, and the same comes of it."""
    log.off = HOUR
    log.add(6000, touched())
    log.ticks(6010)
    offset = log.log.records[-2].offset
    assert log.engine.offset == offset
    assert log.engine.next_offset == offset + 2
    checkpoint = log.engine.cut()
    assert checkpoint.offset == offset
    again = PartitionEngine.restore(log.settings, checkpoint.records)
    assert again is not None
    assert again.next_offset == offset
    log.ticks(6020)
    again.apply(log.log.records[offset:])
    assert again.clock.save() == log.engine.clock.save()
    slot = again.sessions.table.slot_of[ref("s")]
    assert again.sessions.table.last_seen_at[slot] - T0 == log.last_seen()


def test_a_packed_record_goes_on_at_the_entry_that_had_to_wait() -> None:
    """Its bad entry is dead-lettered once, and the entries after it come in order."""
    log = Stepped()
    for name in ("a", "b"):
        log.add(1000, started(name))
    log.tick_until(5000)
    log.add(5000, touched("a"))
    log.tick_until(10_900)
    log.add(11_300, packed([1, 2], entry("a"), entry("b"), entry("a")))
    assert log.engine.waiting == 1
    log.ticks(11_310, 11_320)
    assert [letter.entry for letter in log.seen.dead_letters] == [0]
    assert [(ending.session, ending.due_at) for ending in log.seen.endings] == [(ref("b"), T0 + 11_000)]


def test_too_much_that_waits_is_applied_with_the_benefit_of_the_doubt(
    log: Stepped, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No owner ticks for long after a step: memory is bounded, nobody ends, and the step is taken back later."""
    monkeypatch.setattr(waiting, "WAITING_BYTES_MAX", 500)
    log.off = HOUR
    for at in range(6000, 9000, 200):
        log.add(at, touched())
    assert log.engine.clock.doubtful
    assert log.engine.waiting == 0
    log.add(9000, started("new", subject="u-9"))
    log.ticks(9100, 9110, 9120, 9130)
    assert [alarm.kind for alarm in log.seen.alarms] == ["forward"]
    table = log.engine.sessions.table
    assert table.started_at[table.slot_of[ref("new")]] - T0 <= 9130, "a revocation from now on must cover this login"
    log.tick_until(15_000)
    assert log.seen.endings == []
    assert abs(log.engine.stamp - T0 - 15_000) < 50


def test_a_fall_that_is_only_presumed_lets_stamps_go_on(log: Stepped, monkeypatch: pytest.MonkeyPatch) -> None:
    """Touches after a fall count from where time fell, not as if an hour ago."""
    monkeypatch.setattr(waiting, "WAITING_BYTES_MAX", 500)
    log.off = -HOUR
    for at in range(6000, 9000, 200):
        log.add(at, touched())
    assert log.engine.clock.doubtful
    assert log.last_seen() >= 7000
    log.ticks(9100, 9110, 9120, 9130)
    log.tick_until(17_000)
    assert log.seen.endings == []


@pytest.mark.parametrize(("off", "ordered"), [(HOUR, HOUR + 5990), (HOUR, 5990), (-HOUR, 5990 - HOUR), (-HOUR, 5990)])
def test_a_revocation_is_taken_onto_the_scale_of_log_time(log: Stepped, off: int, ordered: int) -> None:
    """Appended by the broker whose clock was set, or by one whose was not: logins before it end, later ones live."""
    log.off = off
    log.touch_and_go_on(5500)
    log.add(6000, revocation_ordered(ordered, subject="u-1"))
    assert (log.ending.cause, abs(log.ending.due_at - T0 - 5990) <= 60) == ("revoked", True)
    log.add(6100, started("again"))
    log.ticks(6200, 6210)
    assert log.engine.live_sessions == 1


def test_a_new_owner_goes_on_by_the_walls() -> None:
    """A step while nobody owned the partition shows against the owners' wall clocks."""
    clock = DisciplinedClock()
    say = {"owner": "w", "up_ms": 0}

    def one(epoch: int, append: int, mono: int, wall: int, prev: int | None, ack: int | None) -> None:
        clock.record(append)
        clock.tick(
            append,
            ClockTick(epoch=epoch, mono_ms=mono, wall_at=wall, prev_ms=prev, ack_ms=ack, **say),  # type: ignore[arg-type]
        )

    one(1, T0, 100, T0, None, None)
    one(1, T0 + 1000, 1100, T0 + 1000, 100, 102)
    one(2, T0 + HOUR + 9000, 7_000_000, T0 + 9000, None, None)
    assert clock.time <= T0 + 9000
    one(2, T0 + HOUR + 10_000, 7_001_000, T0 + 10_000, 7_000_000, 7_000_002)
    assert abs(clock.offset_ms + HOUR) <= 10
    assert T0 + 9900 <= clock.time <= T0 + 10_000


def test_a_first_owner_that_is_gone_after_one_tick_is_nothing_to_hold_the_next_against() -> None:
    """It has proven no point of log time, so what its wall shows since the log began is no step."""
    clock = DisciplinedClock()
    clock.record(T0)
    ticks = [(1, T0 + 3000, 100, None), (2, T0 + 9000, 7_000_000, None), (2, T0 + 9050, 7_000_050, 7_000_000)]
    for epoch, append, mono, prev in ticks:
        clock.record(append)
        said = clock.tick(
            append,
            ClockTick(
                epoch=epoch,
                owner="w",
                mono_ms=mono,
                wall_at=append,
                prev_ms=prev,
                ack_ms=None if prev is None else prev + 3,
                up_ms=0,
                mac="not looked at",
            ),
        )
    assert said is not None
    assert said.alarm is None
    assert clock.offset_ms == 0
    assert T0 + 9040 <= clock.time <= T0 + 9050


def test_an_order_among_logins_that_were_given_one_stamp_ends_them_all(log: Stepped) -> None:
    """The decision gives them its own instant, after the order's: which of them came first is not known any more."""
    log.off = HOUR
    log.add(6000, started("before", subject="u-2"))
    log.ticks(6010, 6020)
    log.add(6100, revocation_ordered(6005, subject="u-2"))  # from a topic whose leader's clock was right
    assert log.engine.sessions.table.slot_of[ref("before")] not in log.engine.sessions.table.live_slots()
    assert (log.ending.session, log.ending.cause) == (ref("before"), "revoked")


def test_an_order_after_a_small_step_back_ends_the_login_before_it(log: Stepped) -> None:
    """By its append time it came before the login; until the clock has caught up, the copy's stamp is the latest."""
    log.add(5300, started("before", subject="u-2"))
    log.off = -100
    log.add(5390, revocation_ordered(5370 + log.off, subject="u-2"))
    assert (log.ending.session, log.ending.cause) == (ref("before"), "revoked")


def test_an_order_before_a_login_with_a_stamp_of_its_own_does_not_end_it(log: Stepped) -> None:
    """The allowance is for stamps that are shared alone."""
    log.add(5050, started("after", subject="u-2"))
    log.add(5300, revocation_ordered(5040, subject="u-2"))
    assert log.seen.endings == []
