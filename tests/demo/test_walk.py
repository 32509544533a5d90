"""Does the auditor read the rules as the oracle of the engine's tests does?

Method: random histories (tests/engine/histories.py), whose orders are what the topics can hold: an id or version is
ordered once, and copied within a second. The auditor reads the raw records and must come to the oracle's endings: the
same sessions, causes, due instants and deciding stamps. Neither shares code with the other or with the engine.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from typing import Any

import orjson
import pytest

from lapse.pipeline.demo.ordered import OrderedPolicy, OrderedRevocation
from lapse.pipeline.demo.walk import EndedBy, Expected, Rules, Walk
from lapse.pipeline.engine import EngineSettings
from lapse.schemas import Cause, PolicyAdopted, RevocationOrdered, parse_activity

from tests.engine.histories import History, Step, random_settings
from tests.engine.records import JsonObject

HOUR_MS = 3_600_000
SEEDS = 120


class _TrueHistory(History):
    """A history in which every copy is one of an original, and nothing is forged or forgotten."""

    def _append(self, value: JsonObject | bytes | None) -> None:
        record = self.log.add(self.now, value, sign_it=None)
        effects = self.oracle.apply([record])
        holding = self.oracle.hold is not None
        self.steps.append(Step(record, effects, self.oracle.stamp, len(self.oracle.live), None, holding))

    def _revocation(self) -> JsonObject:
        copy = super()._revocation()
        copy["revocation"]["id"] = f"r-{len(self.steps)}"
        # Like a copy that came at once, or after most of a second.
        copy["at"] = max(self._stamp - self.rng.choice((0, 3, 900)), 0)
        return copy

    def _policy_of(self, name: str) -> JsonObject:
        copy = super()._policy_of(name)
        copy["version"] = len(self.steps) + 1
        return copy


def _settings(rng: random.Random) -> EngineSettings:
    # The auditor knows no bounds: where one is reached, the alarm says that endings are missing.
    return dataclasses.replace(
        random_settings(rng),
        ended_memory_ms=HOUR_MS,
        session_life_max_ms=HOUR_MS,
        sessions_max=1_000_000,
        sessions_per_subject_max=1_000,
        classes_max=10_000,
    )


def _rules(settings: EngineSettings) -> Rules:
    names = {field.name for field in dataclasses.fields(Rules)} - {"copied_within_ms", "settled_within_ms"}
    return Rules(**{name: getattr(settings, name) for name in names})


def _walked(steps: list[Step], settings: EngineSettings) -> Walk:
    revocations, policies = [], []
    for step in steps:
        value = step.record.value
        if value is None or b'"mac"' not in value:
            continue
        record = parse_activity(value)
        if isinstance(record, RevocationOrdered):
            revocations.append(OrderedRevocation(record.at, record.revocation))
        elif isinstance(record, PolicyAdopted):
            policies.append(OrderedPolicy(step.stamp, record.version, record.policy))
    walk = Walk(settings.partition, _rules(settings), revocations, policies, _evidence(steps))
    walk.read([step.record for step in steps])
    return walk


def _evidence(steps: list[Step]) -> dict[str, EndedBy]:
    return {
        ending.session: EndedBy(ending.evidence.offset, time=ending.cause in (Cause.IDLE, Cause.ABSOLUTE))
        for step in steps
        for ending in step.effects.endings
    }


def _told(steps: list[Step]) -> dict[str, Expected]:
    endings = [ending for step in steps for ending in step.effects.endings]
    return {e.session: Expected(e.session, e.cause, e.due_at, e.decided_at) for e in endings}


@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_auditor_and_the_oracle_come_to_the_same_endings(seed: int) -> None:
    """Any log whose control records are true: same sessions, same causes, same instants."""
    rng = random.Random(seed)
    history = _TrueHistory(rng, _settings(rng))
    steps = history.write(80)
    walk = _walked(steps, history.settings)
    assert walk.expected == _told(steps)
    assert len(walk.live) == steps[-1].live


def test_the_histories_have_every_kind_of_ending() -> None:
    """What agrees on nothing would agree too: each cause comes up often, in holds as well."""
    causes: Counter[Any] = Counter()
    for seed in range(SEEDS):
        rng = random.Random(seed)
        steps = _TrueHistory(rng, _settings(rng)).write(80)
        causes.update((ending.cause.value, ending.held) for step in steps for ending in step.effects.endings)
    kinds = [("idle", False), ("idle", True), ("absolute", False), ("closed", False), ("revoked", False)]
    assert all(causes[kind] >= 5 for kind in kinds), causes


def test_a_copy_without_an_original_ends_nothing() -> None:
    """The auditor asks the topic that an order was written to; what only the activity log says is no order."""
    rng = random.Random(1)
    settings = _settings(rng)
    history = _TrueHistory(rng, settings)
    history._append(history._policy_of("default"))
    history._append(history._started())
    everyone = {"type": "revocation", "id": "r-forged", "everyone": True}
    history._append({"type": "revocation.ordered", "at": history.oracle.stamp, "revocation": everyone})
    walk = Walk(settings.partition, _rules(settings), [], [], _evidence(history.steps))
    walk.read([step.record for step in history.steps])
    assert _told(history.steps), orjson.loads(history.steps[-1].record.value or b"null")
    assert not walk.expected
