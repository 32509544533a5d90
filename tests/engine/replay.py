"""Does an engine say to a history what the oracle said, whatever is done to the engine meanwhile?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from lapse.pipeline.engine import EngineSettings, PartitionEngine

from tests.engine.histories import Step
from tests.engine.oracle_facts import OracleEffects
from tests.engine.records import assert_same

__all__ = ["compacted", "replay"]

StateRecord = tuple[bytes, bytes | None]


def compacted(records: Sequence[StateRecord], rng: random.Random) -> list[StateRecord]:
    """Return the state topic's records as compaction may leave them: of each key the last ones, in their order."""
    kept: list[StateRecord] = []
    later: set[bytes] = set()
    for key, value in reversed(records):
        if key not in later or rng.random() < 0.3:
            kept.append((key, value))
        later.add(key)
    return kept[::-1]


def replay(
    steps: Sequence[Step],
    settings: EngineSettings,
    rng: random.Random,
    engine_class: type[Any] = PartitionEngine,
) -> None:
    """Feed a history to an engine in random batches, with checkpoints, crashes and redeliveries; assert it agrees."""
    engine = engine_class(settings)
    state: list[StateRecord] = []
    watermark = 0
    while engine.offset < len(steps):
        first = engine.offset
        size = rng.choice((1, 1, 2, 5, 20))
        again = rng.choice((0, 0, 0, 1, 7))
        batch = steps[max(first - again, 0) : first + size]
        effects = engine.apply([step.record for step in batch])
        expected = OracleEffects()
        for step in batch:
            if step.record.offset >= first:
                expected.extend(step.effects)
        assert_same(effects, expected, f"at offsets {first} to {batch[-1].record.offset}")
        if rng.random() < 0.7:  # to ask an engine must not change it
            _assert_state(engine, batch[-1])
        assert all(ending.decided_at >= watermark for ending in effects.endings), "the watermark ran ahead"
        watermark = engine.watermark()
        if rng.random() < 0.15:
            checkpoint = engine.cut()
            assert checkpoint.offset == engine.offset
            assert checkpoint.records[-1][0] == b"m"
            state += checkpoint.records
        if rng.random() < 0.12:
            engine, watermark = _restored(engine_class, settings, state, rng)


def _restored(
    engine_class: type[Any], settings: EngineSettings, state: list[StateRecord], rng: random.Random
) -> tuple[Any, int]:
    """Return the engine that a new owner builds from the state topic: the last checkpoint, or none at all."""
    engine = engine_class.restore(settings, compacted(state, rng))
    if engine is None:
        assert not state
        engine = engine_class(settings)
    return engine, engine.watermark()


def _assert_state(engine: Any, step: Step) -> None:
    assert engine.offset == step.record.offset + 1
    assert engine.stamp == step.stamp
    assert engine.live_sessions == step.live
    # What is due at or before the stamp is due now.
    due, expected = (None if at is None else max(at, step.stamp) for at in (engine.next_due_at(), step.next_due_at))
    if not step.holding:
        assert due == expected, (due, expected)
    elif expected is not None:
        # In a hold it may look earlier than need be, but never later, and never before time has passed.
        assert due is not None
        assert due <= expected, (due, expected)
        assert due > step.stamp or expected == step.stamp, (due, expected)
