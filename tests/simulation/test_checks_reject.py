"""Do the checks fail where they must? Each is tried on an engine that is wrong in one thing.

The wrong engines are made in memory, by the public interface alone: the real engine with one setting off by one, one
that loses a piece when it is restored, one that says something else. A check that lets one of them pass checks nothing.
What the worlds check is tried in test_worlds_reject.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from lapse.pipeline.engine import Checkpoint, Effects, EngineSettings, LogRecord, PartitionEngine

from tests.simulation.runs import Failure, run_history, tell_history

SEEDS_MAX = 150
StateRecord = tuple[bytes, bytes | None]


class Wrong:
    """The real engine behind the engine's interface; subclasses are wrong in one thing."""

    def __init__(self, settings: EngineSettings, engine: PartitionEngine | None = None) -> None:
        self.engine = engine or PartitionEngine(self.settings_of(settings))

    @classmethod
    def settings_of(cls, settings: EngineSettings) -> EngineSettings:
        return settings

    @classmethod
    def state_of(cls, records: list[StateRecord]) -> list[StateRecord]:
        return records

    @classmethod
    def restore(cls, settings: EngineSettings, records: Iterable[StateRecord]) -> Wrong | None:
        engine = PartitionEngine.restore(cls.settings_of(settings), cls.state_of(list(records)))
        return None if engine is None else cls(settings, engine)

    def apply(self, records: Sequence[LogRecord]) -> Effects:
        return self.engine.apply(records)

    def cut(self) -> Checkpoint:
        return self.engine.cut()

    def next_due_at(self) -> int | None:
        return self.engine.next_due_at()

    def watermark(self) -> int:
        return self.engine.watermark()

    @property
    def offset(self) -> int:
        return self.engine.offset

    @property
    def stamp(self) -> int:
        return self.engine.stamp

    @property
    def live_sessions(self) -> int:
        return self.engine.live_sessions


def _is_rejected(wrong: type[Wrong]) -> bool:
    for seed in range(SEEDS_MAX):
        try:
            run_history(seed, engine_class=wrong)
        except Failure:
            return True
    return False


def test_the_real_engine_passes_behind_the_same_interface() -> None:
    """The wrapping itself changes nothing, so that what fails below fails for its one fault."""
    for seed in range(20):
        run_history(seed, engine_class=Wrong)


SETTINGS = [
    "grace_ms",
    "gap_ms",
    "gap_grace_ms",
    "age_max_ms",
    "ended_memory_ms",
    "violation_after_ms",
    "session_life_max_ms",
]


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_that_is_off_by_one_millisecond_is_found(setting: str, by: int) -> None:
    """Each boundary is hit from both sides."""

    class OffByOne(Wrong):
        @classmethod
        def settings_of(cls, settings: EngineSettings) -> EngineSettings:
            return dataclasses.replace(settings, **{setting: getattr(settings, setting) + by})

    assert _is_rejected(OffByOne)


def _ending(change: Callable[[Any], Any]) -> Callable[[Effects], None]:
    def wrong(effects: Effects) -> None:
        decided = effects.endings.decided
        decided[-1:] = [change(ending) for ending in decided[-1:]]

    return wrong


SAYINGS: dict[str, Callable[[Effects], Any]] = {
    "an ending twice": lambda effects: effects.endings.extend(effects.endings.decided[:1]),
    "an ending less": lambda effects: effects.endings.decided.__delitem__(slice(0, 1)),
    "endings in another order": lambda effects: effects.endings.decided.reverse(),
    "due later by one": _ending(lambda e: e._replace(due_at=e.due_at + 1)),
    "decided earlier by one": _ending(lambda e: e._replace(decided_at=e.decided_at - 1)),
    "never held": _ending(lambda e: e._replace(held=False)),
    "denied shorter by one": _ending(lambda e: e._replace(deny_until=e.deny_until - 1)),
    "another revocation": _ending(lambda e: e._replace(revocation=e.revocation and "r-0")),
    "no warnings": lambda effects: effects.warnings.clear(),
    "no violations": lambda effects: effects.violations.clear(),
    "a dead letter less": lambda effects: effects.dead_letters.__delitem__(slice(0, 1)),
    "a forward less": lambda effects: effects.forwards.__delitem__(slice(0, 1)),
    "never ticked": lambda effects: setattr(effects, "ticked", False),
}


@pytest.mark.parametrize("name", SAYINGS)
def test_an_engine_that_says_something_else_is_found(name: str) -> None:
    """Every effect, its fields and their order are compared."""

    class Liar(Wrong):
        def apply(self, records: Sequence[LogRecord]) -> Effects:
            effects = self.engine.apply(records)
            SAYINGS[name](effects)
            return effects

    assert _is_rejected(Liar)


def test_a_failing_history_is_told_by_its_shortest_beginning() -> None:
    """Whoever reads it sees the settings, the records up to the one that shows the fault, and the reason."""

    class Silent(Wrong):
        def apply(self, records: Sequence[LogRecord]) -> Effects:
            effects = self.engine.apply(records)
            effects.dead_letters.clear()
            return effects

    told = tell_history(0, engine_class=Silent).splitlines()
    records = next(n for n, line in enumerate(told) if line.startswith("history 0: ")) - 1
    assert told[0].startswith("EngineSettings(")
    assert "dead_letters" in told[-1]
    run_history(0, engine_class=Silent, length=records - 1)
    with pytest.raises(Failure):
        run_history(0, engine_class=Silent, length=records)


STATES: dict[str, Callable[[list[StateRecord]], list[StateRecord]]] = {
    "the last chunk's last version": lambda records: _without_last(records, b"c"),
    "a cutoff": lambda records: _without_last(records, b"r"),
}


def _without_last(records: list[StateRecord], kind: bytes) -> list[StateRecord]:
    last = max((n for n, (key, _) in enumerate(records) if key[:1] == kind), default=None)
    return [record for n, record in enumerate(records) if n != last]


@pytest.mark.parametrize("name", STATES)
def test_an_engine_that_is_restored_from_less_is_found(name: str) -> None:
    """A checkpoint is needed whole."""

    class Forgetful(Wrong):
        @classmethod
        def state_of(cls, records: list[StateRecord]) -> list[StateRecord]:
            return STATES[name](records)

    assert _is_rejected(Forgetful)


def test_an_engine_that_misses_a_record_after_a_restore_is_found() -> None:
    """Reading goes on at the checkpoint's offset, not behind it."""

    class Skipping(Wrong):
        skips = False

        @classmethod
        def restore(cls, settings: EngineSettings, records: Iterable[StateRecord]) -> Wrong | None:
            engine = super().restore(settings, records)
            if isinstance(engine, Skipping):
                engine.skips = True
            return engine

        def apply(self, records: Sequence[LogRecord]) -> Effects:
            if self.skips:
                self.skips = False
                offset = self.engine.offset
                records = [record for record in records if record.offset != offset]
            return self.engine.apply(records)

    assert _is_rejected(Skipping)


@pytest.mark.parametrize("what", ["next due", "watermark", "live sessions"])
def test_an_engine_that_answers_off_by_one_is_found(what: str) -> None:
    """What the processor asks between batches is compared, too."""

    class OffByOne(Wrong):
        def next_due_at(self) -> int | None:
            due = self.engine.next_due_at()
            return due if due is None or what != "next due" else due + 1

        def watermark(self) -> int:
            return self.engine.watermark() + (what == "watermark")

        @property
        def live_sessions(self) -> int:
            return self.engine.live_sessions + (what == "live sessions")

    assert _is_rejected(OffByOne)
