"""Do the checks of the worlds fail where they must? Each is tried on an estate that is wrong in one thing.

What is wrong is an engine that loses or adds something, a worker that leaves out one step of the order of effects, or
a broker that refuses nobody; and rules that are wrong in engine and replay alike, which only the truth can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from lapse.pipeline.engine import Checkpoint, Effects, EngineSettings, LogRecord, PartitionEngine, core, log_clock
from lapse.pipeline.engine.append_clock import AppendClock

from tests.simulation.broker import Broker
from tests.simulation.drawing import draw
from tests.simulation.owner import Owner
from tests.simulation.plan import Crash, Plan
from tests.simulation.runs import Failure, run_plan
from tests.simulation.test_checks_reject import StateRecord, Wrong
from tests.simulation.ticking import Ticking
from tests.simulation.world import World

SEEDS_MAX = 200


def _found(plan_of: Callable[[int], Plan] = draw, /, **kinds: Any) -> str:
    """Return by which check what is wrong is found; none: it is not."""
    for seed in range(SEEDS_MAX):
        try:
            run_plan(plan_of(seed), **kinds)
        except Failure as failure:
            return str(failure).split(":")[2].strip()
    return "none"


# Engines


class Behind(Wrong):
    """The real engine, with what a modelled owner asks besides."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


class RandomIds(Behind):
    def apply(self, records: Sequence[LogRecord]) -> Effects:
        effects = self.engine.apply(records)
        endings = [ending.model_copy(update={"id": uuid4().hex[:22]}) for ending in effects.endings]
        effects.endings = endings  # type: ignore[assignment]  # it is read in the same way
        return effects


class SettlesWithoutGrace(Behind):
    @classmethod
    def settings_of(cls, settings: EngineSettings) -> EngineSettings:
        return EngineSettings(
            partition=settings.partition,
            partitions=settings.partitions,
            worker_key=settings.worker_key,
            clock=settings.clock,
            grace_ms=0,
        )


class ForgetsCutoffs(Behind):
    @classmethod
    def restore(cls, settings: EngineSettings, records: Iterable[StateRecord]) -> Wrong | None:
        restored = super().restore(settings, records)
        if restored is not None:
            cutoffs = restored.engine.sessions.cutoffs
            restored.engine.sessions.cutoffs = type(cutoffs)(settings.session_life_max_ms)
        return restored


class ForgetsOrigins(Behind):
    @classmethod
    def restore(cls, settings: EngineSettings, records: Iterable[StateRecord]) -> Wrong | None:
        restored = super().restore(settings, records)
        if restored is not None:
            restored.engine.origins.clear()
        return restored


class VouchesAhead(Behind):
    def watermark(self) -> int:
        return self.engine.watermark() + 1500


ENGINES = [RandomIds, SettlesWithoutGrace, ForgetsCutoffs, ForgetsOrigins, VouchesAhead]


def test_the_real_engine_passes_behind_the_same_interface() -> None:
    """The wrapping itself changes nothing, so that what fails below fails for its one fault."""
    for seed in range(20):
        run_plan(draw(seed), engine_class=Behind)


@pytest.mark.parametrize("engine", ENGINES, ids=[engine.__name__ for engine in ENGINES])
def test_a_wrong_engine_is_found(engine: type[Behind]) -> None:
    """What an engine says, vouches for and restores is held against a replay of the log."""
    assert _found(engine_class=engine) != "none"


# Workers and brokers


class SavesBeforeItIsAcknowledged(Owner):
    def may_write(self, acknowledged: bool) -> bool:
        return True


class CommitsBeyondTheCut(Owner):
    def position(self, cut: Checkpoint) -> int:
        return int(self.engine.next_offset) + 1


class KeepsItsEpoch(Owner):
    """An owner that ticks under the epoch of its predecessor, whose monotonic clock was another."""

    def __init__(self, process: Any, number: int) -> None:
        super().__init__(process, number)
        self.ticking = _SameEpoch(self)


class _SameEpoch(Ticking):
    def _claimed(self, epoch: int) -> None:
        super()._claimed(max(epoch - 1, 0))


class TakesARecordInHand(Owner):
    """An owner whose one misplaced record asks for no tick, and a checkpoint that waits for it keeps the tick away."""

    @property
    def waits_to_forward(self) -> bool:
        return len(self._forwards) > 1

    def may_claim(self) -> bool:
        return not self._checkpointing and super().may_claim()


class WaitsForRoomInSilence(Owner):
    """An owner that asks for a tick only after a batch, and whose batch may wait for one: for room in the queue."""

    def _caught_up(self) -> None:
        if not self._busy:
            super()._caught_up()


def _one_misplaced(seed: int) -> Plan:
    """Draw an estate with a single misplaced record, which is in the backlog of workers that start anew."""
    plan = draw(seed)
    lone, *others = plan.people
    lone = replace(lone, login_at=10_000, acts=(), closed_at=None, scattered=True)
    people = (lone, *(replace(one, scattered=False) for one in others))
    faults = tuple(Crash(10_200, worker, None, 1_000) for worker in range(plan.workers))
    return replace(plan, people=people, faults=faults, orders=(), policies=())


class RefusesNobody(Broker):
    def is_fenced(self, partition: int, epoch: int) -> bool:
        return False


OWNERS = [SavesBeforeItIsAcknowledged, CommitsBeyondTheCut, KeepsItsEpoch, WaitsForRoomInSilence]


@pytest.mark.parametrize("owner", OWNERS, ids=[owner.__name__ for owner in OWNERS])
def test_a_wrong_order_of_effects_is_found(owner: type[Owner]) -> None:
    """Each step of the order of effects is needed."""
    assert _found(owner_class=owner) != "none"


def test_a_single_misplaced_record_that_stops_its_partition_is_found() -> None:
    """More of them would ask for the tick, and without any nothing waits."""
    assert _found(_one_misplaced, owner_class=TakesARecordInHand) == "stuck"
    for seed in range(20):
        run_plan(_one_misplaced(seed))


def test_a_broker_without_a_fence_is_found() -> None:
    """A zombie's checkpoint over its successor's is a position that fell, or a state that is not by the log."""
    assert _found(broker_class=RefusesNobody) in ("position", "state", "said")


# Rules


@pytest.mark.parametrize(
    "changes",
    [{"gap_ms": 1_000_000_000}, {"gap_grace_ms": 1}, {"grace_ms": 30_000}],
    ids=["no hold", "no time for what was kept", "a grace that never ends"],
)
def test_rules_that_log_somebody_out_or_nobody_are_found_by_the_truth(changes: dict[str, int]) -> None:
    """The worlds' people know what is right, also when engine and replay agree on what is wrong."""
    assert _found(**changes) in ("early", "missed", "truth")


def test_a_clock_that_is_believed_is_found_by_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """By append times alone a step of a broker's clock ends people early."""
    monkeypatch.setattr(core, "DisciplinedClock", AppendClock)
    assert _found() in ("early", "missed", "truth", "stuck", "said", "resurrection")


def test_an_engine_that_does_not_wait_is_found_by_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disciplined log time alone is not enough: stamps lie, and what they call late is lost."""
    monkeypatch.setattr(log_clock.DisciplinedClock, "suspicious", lambda self, append: False)
    assert _found() in ("early", "missed", "truth")


def test_a_real_engine_is_what_is_run() -> None:
    """Without another class it is the engine that workers run."""
    assert World(draw(0)).engine_class is PartitionEngine
