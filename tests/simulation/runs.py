"""Which kinds of run are there? Each is a function of a seed that raises `Failure`.

worlds      a world of people, a service, a log and workers that break (world.py), checked against the truth
histories   a log at its worst (tests/engine/histories.py), the engine cut, lost and restored at random
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from lapse.pipeline.engine import PartitionEngine

from tests.engine.histories import History, random_settings
from tests.engine.replay import replay
from tests.simulation.checkers import check
from tests.simulation.world import World

__all__ = ["RUNS", "Failure", "run_history", "run_world"]

HISTORY_LENGTH = 150


class Failure(Exception):
    """A run whose check failed, or whose engine raised; the message has the seed and the reason."""


def run_world(seed: int, engine_class: type[Any] = PartitionEngine) -> None:
    """Run one world and check it."""
    _run(f"world {seed}", lambda: _world(seed, engine_class))


def run_history(seed: int, engine_class: type[Any] = PartitionEngine) -> None:
    """Write one history and have the engine read it."""
    _run(f"history {seed}", lambda: _history(seed, engine_class))


def _world(seed: int, engine_class: type[Any]) -> None:
    world = World(seed, engine_class)
    world.run()
    check(world)


def _history(seed: int, engine_class: type[Any]) -> None:
    rng = random.Random(seed)
    history = History(rng, random_settings(rng))
    replay(history.write(HISTORY_LENGTH), history.settings, rng, engine_class)


def _run(name: str, run: Callable[[], None]) -> None:
    try:
        run()
    except Exception as error:
        raise Failure(f"{name}: {type(error).__name__}: {error}") from error


RUNS: dict[str, Callable[[int], None]] = {"worlds": run_world, "histories": run_history}
