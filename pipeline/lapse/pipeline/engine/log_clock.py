"""What time is it in this log? Log time, disciplined by the monotonic clocks of the partition's owners.

Theory of operation
-------------------
The log is the clock (DESIGN.md section 2): a record's time is its append time. But append times are the wall clock of
whichever broker leads the partition, and wall clocks are set: measured, they jump at once, also backwards. So two
things are kept apart.

* A *stamp* is append time plus `offset_ms`, the sum of the steps that have been taken out so far. It is exact while the
  broker's clock runs evenly, and a lie from the moment it is set until that is noticed.
* *Log time* `time` is how far time has certainly come. Only ticks move it, and only by the owner's monotonic clock, so
  a step of the broker's clock never moves it. Sessions end by log time.

**What a tick proves.** A tick says when it was sent (`mono_ms`), and of the tick before, when that was acknowledged
(`prev_ms`, `ack_ms`; one is under way at a time). The earlier tick was appended in between, so when the later one is
read, `broker - mono` at that append is known to lie in the *bracket* [append - ack, append - sent]. Against the
interval [low, high] known from before, which is widened by what two clocks may drift apart (DRIFT):

    they meet                   the broker's clock ran evenly: the interval narrows to what they share
    the bracket lies above      it was set forward: `offset_ms` falls by the largest step possible, high to low
    the bracket lies below      it was set back, by less than has passed since: where log time would fall behind what
                                was proven before (`base`), `offset_ms` rises so that it goes on from there
    append times fell           (also seen between ticks) set back: log time goes on from `base`, or from what the
                                owner's monotonic clock proves beyond it
    a tick *slipped*            it was appended before it was sent, yet the bracket does not lie below: set back and
                                forth; log time goes on from `base`, for records in between have stamps from there

A late tick or a slow acknowledgement is only a wide bracket, never a step. One wider than WIDE_MS, or a differing one
that the present tick's own append does not agree with (it moved again), is left out and the next is asked; after
PATIENCE ticks it is believed as it is.

**Log time** at a tick is `mono_ms + low + offset_ms`: the log's time when the tick was sent, at least. It stands still
from a fall of append times, or a slip, until that is decided.

**A new owner** has a monotonic clock of its own, and no interval. Its first bracket becomes the interval. What happened
in between is bridged by the owners' wall clocks, from the last tick of the last owner: if the broker's clock went
farther than they by more than AGREE_MS, the difference is taken out; if less, the broker is believed. The earlier of
both, so that one wrong clock makes sessions end late, and only two that err alike make them end early.

**Never early.** Every correction lets log time fall or stay, never rise: forward takes out at least the step, back
restores at most what is proven. `low` is never above the truth, so log time never passes the stamps of records
appended after the tick was sent. Stamps may lie until a step is decided: records wait from its first sign
(`suspicious`) until then (waiting.py).

Cannot be held: steps below WIDE_MS, AGREE_MS or (in the log alone) FALL_MS; two that cancel each other between two
ticks with no record to see them; one at a change of owner while both walls err the same way; ticks that are all
acknowledged later than WIDE_MS, PATIENCE times in a row, with a step among them. docs/adr/0006 has the measurements.

Source: Marzullo and Owicki, "Maintaining the Time in a Distributed System" (PODC 1983): intersecting intervals.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from math import ceil, floor
from typing import Literal, NamedTuple, Protocol

from lapse.schemas import ClockTick

__all__ = ["JUMP_MS", "ClockAlarm", "Decision", "DisciplinedClock", "LogClock"]

DRIFT = 500e-6
"""Two clocks of 250 ppm each, in opposite directions; quartz is rated 20 to 100 ppm."""

JUMP_MS = 2_000
"""An append so far beyond the stamp before it may follow a step. An owner ticks every second, so a healthy log has no
such pause; what jumps by more than `gap_ms` (3000) must not be taken for an outage before it is decided. A step below
it makes stamps, and so endings, late by that much."""

WIDE_MS = 250
"""A bracket up to this width is used: a loaded broker acknowledges in tens of ms. It bounds what a step can hide."""

FALL_MS = 50
"""Append times of one leader do not fall, but where leadership moves two brokers' clocks differ; NTP keeps them within
some ms in a data centre. A smaller fall is left to the ticks."""

AGREE_MS = 250
"""How far the broker's clock may go beyond the walls of two owners, over a change of owner, and be no step."""

PATIENCE = 10
"""So many brackets may be left out in a row: 10 s at one a second. Then a wide one is better than no time at all."""


AlarmKind = Literal["forward", "back", "back_and_forth", "owner_change"]


class ClockAlarm(NamedTuple):
    """A step of the broker's clock was taken out, or a disagreement of clocks was settled.

    Attributes:
        kind: what the broker's clock did; `owner_change`: it went farther than the owners' walls did.
        moved_ms: by how much it stepped, > 0 forward, < 0 back; with `back_and_forth` what it costs log time.
        offset_ms: what is added to append times from now on.
        at: log time when it was noticed, epoch ms.
    """

    kind: AlarmKind
    moved_ms: int
    offset_ms: int
    at: int


class Decision(NamedTuple):
    """What a tick decided about all that was appended up to the tick before it.

    Attributes:
        alarm: a step was taken out, of before this tick. None: the broker's clock is as it was, up to the tick before.
        stamp: one that is not before that of any record so far (with an alarm), or up to the tick before.
    """

    alarm: ClockAlarm | None
    stamp: int


class LogClock(Protocol):
    """The clock of one partition, fed with append times (epoch ms) in log order."""

    final: bool
    """Whether every stamp is right at once, so that nothing ever has to wait for a decision."""

    time: int
    """Log time: how far time has certainly come, epoch ms. Never falls. 0 before the first record."""

    @property
    def offset_ms(self) -> int:
        """What is added to an append time to get a stamp."""

    @property
    def doubtful(self) -> bool:
        """Whether stamps are only presumed, until the next decision."""

    def suspicious(self, append: int) -> bool:
        """Return whether the next record's append time may follow a step. Changes nothing."""

    def record(self, append: int) -> int:
        """Take in a record's append time and return its stamp, which may be below the one before it."""

    def tick(self, append: int, tick: ClockTick) -> Decision | None:
        """Take in a valid tick of the present or a new owner, after `record(append)` of the same record."""

    def time_at(self, epoch: int, mono_ms: float) -> float | None:
        """Return what log time a tick of this epoch will give that is sent at `mono_ms`; None: not known yet."""

    def presume(self) -> None:
        """Go on without a decision: stamps are doubtful until the next one."""

    def copy(self) -> LogClock:
        """Return a clock that stands where this one does."""

    def save(self) -> dict[str, int | float | None]:
        """Return the state for a checkpoint."""

    def load(self, state: dict[str, int | float | None]) -> None:
        """Take the state of a checkpoint back."""


@dataclass(slots=True)
class DisciplinedClock:
    """The disciplined clock; see the module's theory of operation.

    `low` and `high` bound broker - mono for the present owner, None before its first bracket. `sent`, `appended` and
    `wall` are the latest tick's. `base` is log time as of the latest decision, `point` as of the latest good tick.
    """

    final: bool = field(default=False, init=False, repr=False)
    time: int = 0
    offset_ms: int = 0
    doubtful: bool = False
    in_doubt: bool = False  # the latest tick came while they were
    presumed_ms: int = 0  # what a fall is presumed to have taken from stamps while they are doubtful
    latest: int | None = None  # the latest append time; None before the first record
    fell: bool = False  # append times fell since the latest tick,
    fell_before: bool = False  # or before it, since the latest decision
    slipped: bool = False  # since then a tick, appended before it was sent, showed that the broker's clock was set back
    base: float = 0.0
    point: float = 0.0
    epoch: int = -1
    low: float | None = None
    high: float = 0.0
    sent: int = 0
    appended: int = 0
    wall: int = 0
    left_out: int = 0
    bridge_point: float | None = None  # log time and wall at the last owner's last good tick, until it is bridged
    bridge_wall: int = 0

    def suspicious(self, append: int) -> bool:
        """Return whether the append time fell, or jumped; see `LogClock`."""
        latest = self.latest
        return latest is not None and not self.doubtful and not latest - FALL_MS <= append <= latest + JUMP_MS

    def record(self, append: int) -> int:
        """Take in a record's append time and return its stamp; see `LogClock`."""
        latest = self.latest
        if latest is None:
            self.time = self.latest = append
            self.base = self.point = float(append)
        elif append > latest:
            self.latest = append
        elif append < latest - FALL_MS:
            self.fell = True
            self.latest = append
            if self.doubtful:
                self.presumed_ms += latest - append
        return append + self.offset_ms + self.presumed_ms

    def tick(self, append: int, tick: ClockTick) -> Decision | None:
        """Take in a tick; see `LogClock`."""
        if tick.epoch < self.epoch:
            return None
        decision: ClockAlarm | bool = False
        if tick.epoch > self.epoch:
            self._take_over(tick.epoch)
        else:
            self._widen(tick.mono_ms)
            if tick.prev_ms == self.sent and tick.ack_ms is not None and tick.ack_ms >= self.sent:
                decision = self._decide(tick.ack_ms, append, tick)
        fell_unseen = self.low is not None and append + 1 - tick.mono_ms < self.low
        fell = self.fell or self.fell_before
        self.slipped |= fell_unseen and not fell
        if fell or self.slipped:
            self.point = self.base
        else:
            self.point = self._now(append, tick)
            self.time = max(self.time, floor(self.point))
        self.fell_before |= self.fell
        self.fell = False
        appended, in_doubt = self.appended, self.in_doubt
        self.in_doubt = self.doubtful
        self.sent, self.appended, self.wall = tick.mono_ms, append, tick.wall_at
        if decision is False:
            return None
        if decision is not True or in_doubt:
            self.doubtful, self.presumed_ms = False, 0
        if decision is True:
            return Decision(None, appended + self.offset_ms)
        return Decision(decision, max(self.time, append + self.offset_ms))

    def time_at(self, epoch: int, mono_ms: float) -> float | None:
        """Return what log time a tick sent at `mono_ms` will give; see `LogClock`."""
        if epoch != self.epoch or self.low is None:
            return None
        drifted = DRIFT * max(mono_ms - self.sent, 0)
        return mono_ms + self.low - drifted + self.offset_ms

    def _take_over(self, epoch: int) -> None:
        """A new owner ticks for the first time: its monotonic clock has nothing to do with the last one's."""
        if self.epoch >= 0:
            # An owner without any bracket or bridge (the first one, gone at once) has proven no point to go on from.
            if self.bridge_point is None and self.low is not None:
                self.bridge_point, self.bridge_wall = self.point, self.wall
            self.fell_before |= self.fell
            self.fell = False
        self.epoch = epoch
        self.low = None
        self.left_out = 0

    def _widen(self, mono_ms: int) -> None:
        if self.low is not None:
            drifted = DRIFT * max(mono_ms - self.sent, 0)
            self.low -= drifted
            self.high += drifted

    def _now(self, append: int, tick: ClockTick) -> float:
        """Return log time as of this tick's sending, at least; before an owner's first bracket by the walls."""
        if self.low is not None:
            return tick.mono_ms + self.low + self.offset_ms
        if self.bridge_point is not None:
            return min(append + self.offset_ms, self.bridge_point + tick.wall_at - self.bridge_wall)
        return self.base

    def _decide(self, acked: int, append: int, tick: ClockTick) -> ClockAlarm | bool:
        """Use the bracket of the tick before this one. Return an alarm; True: stamps are right; False: no decision."""
        # Append times and the monotonic instants are whole ms, cut off: each may be almost 1 ms later than it says.
        low, high = float(self.appended - acked - 1), float(self.appended + 1 - self.sent)
        meets = self.low is not None and not self.fell_before and low <= self.high and high >= self.low
        agrees = low <= append + 1 - tick.mono_ms and append - tick.mono_ms <= high + WIDE_MS
        if self.left_out < PATIENCE and (high - low > WIDE_MS or not (meets or agrees)):
            self.left_out += 1
            return False
        self.left_out = 0
        before, rebase, moved = self.offset_ms, None, 0
        alarm: AlarmKind | None = None
        if meets and not self.slipped:
            assert self.low is not None  # noqa: S101  # it meets
            low, high = max(low, self.low), min(high, self.high)
        elif self.fell_before:
            # After a slip, records may have stamps below what the owner's clock proves: only the base is safe for them.
            alarm, rebase = "back", self.base if self.slipped else max(self.base, self._now(append, tick))
        elif self.low is None:
            alarm = self._bridge(high - low)
        elif self.slipped and high >= self.low:
            alarm, rebase = "back_and_forth", self.base  # records in between have stamps below what was proven
        elif low > self.high:
            alarm = "forward"
            self.offset_ms -= ceil(high - self.low)
        elif append + self.offset_ms < self.base:
            alarm, rebase = "back", self.base
        else:
            # By less than has passed: log time falls back by it, and stands until it is reached again.
            alarm, moved = "back", floor(high - self.low)
        if rebase is None:
            self.base = self.sent + low + self.offset_ms
        else:
            self.offset_ms = floor(rebase) - append
            self.base = rebase
        self.fell_before = self.slipped = False
        self.low, self.high, self.bridge_point = low, high, None
        if alarm is None:
            return True
        return ClockAlarm(alarm, moved or before - self.offset_ms, self.offset_ms, max(self.time, floor(self.base)))

    def _bridge(self, width: float) -> Literal["owner_change"] | None:
        """Hold the broker's clock against the owners' walls, as of the latest tick, and take out what it is ahead."""
        if self.bridge_point is None:
            return None
        by_walls = self.bridge_point + self.wall - self.bridge_wall
        if self.appended + self.offset_ms - width <= by_walls + AGREE_MS:
            return None
        self.offset_ms = floor(by_walls) - self.appended
        return "owner_change"

    def presume(self) -> None:
        """Believe append times until the next decision; where they have fallen, go on from where they fell."""
        self.doubtful, self.in_doubt = True, False

    def copy(self) -> DisciplinedClock:
        """Return a clock that stands where this one does."""
        return replace(self)

    def save(self) -> dict[str, int | float | None]:
        """Return the state for a checkpoint."""
        state = asdict(self)
        del state["final"]
        return state

    def load(self, state: dict[str, int | float | None]) -> None:
        """Take the state of a checkpoint back."""
        for name, value in state.items():
            setattr(self, name, value)
