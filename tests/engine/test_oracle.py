"""Does the engine say what the oracle says, to any log, however it is cut, and wherever it is restored?

Method: a random history (histories.py) is written with the oracle beside it. Then the engine reads it in arbitrary
batches; between batches it may be cut and thrown away, restored from the state records written so far, and given the
records below its checkpoint again. Whatever it is put through, each batch must have just the effects that the oracle
has for its records: all endings, with all fields and in order, warnings, violations, forwards and dead letters.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lapse.pipeline.engine import PartitionEngine

from tests.engine.histories import History, Step, random_settings
from tests.engine.replay import replay

LENGTH = 60


@given(st.randoms(use_true_random=False), st.randoms(use_true_random=False))
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_engine_and_oracle_agree_on_any_log(writing: random.Random, reading: random.Random) -> None:
    """The oracle and the engine agree on arbitrary records, batches, checkpoints, restores and redeliveries."""
    history = History(writing, random_settings(writing))
    replay(history.write(LENGTH), history.settings, reading)


@pytest.mark.parametrize("seed", range(120))
def test_engine_and_oracle_agree_on_seeded_logs(seed: int) -> None:
    """The same over longer histories of fixed seeds: what is in here was seen once and stays covered."""
    rng = random.Random(seed)
    history = History(rng, random_settings(rng))
    replay(history.write(150), history.settings, rng)


def _seeded(count: int, length: int) -> list[Step]:
    steps: list[Step] = []
    for seed in range(count):
        rng = random.Random(seed)
        steps += History(rng, random_settings(rng)).write(length)
    return steps


def test_histories_hit_what_matters() -> None:
    """A property is worth what its inputs hit: each kind of effect comes up often."""
    steps = _seeded(60, 150)
    endings = [ending for step in steps for ending in step.effects.endings]
    causes = Counter((ending.cause.value, ending.held) for ending in endings)
    for cause in [
        ("idle", False),
        ("idle", True),
        ("absolute", False),
        ("absolute", True),
        ("closed", False),
        ("revoked", False),
    ]:
        assert causes[cause] >= 20, causes
    said = Counter(
        kind
        for step in steps
        for kind in ("warnings", "violations", "dead_letters", "forwards")
        for _ in getattr(step.effects, kind)
    )
    assert min(said[kind] for kind in ("warnings", "violations", "dead_letters", "forwards")) >= 100, said
    assert sum(step.holding for step in steps) >= len(steps) // 20


def test_the_engine_is_what_is_tested() -> None:
    """The engine that the properties build is the one that is shipped."""
    assert PartitionEngine.__module__ == "lapse.pipeline.engine.core"
