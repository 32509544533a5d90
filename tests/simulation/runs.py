"""Which kinds of run are there? Each is a function of a seed that raises `Failure`.

worlds      people, services, a log and workers that break (world.py), checked against the log and the truth
histories   a log at its worst (tests/engine/histories.py), the engine cut, lost and restored at random
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from lapse.pipeline.engine import PartitionEngine

from tests.engine.histories import History, random_settings
from tests.engine.replay import replay
from tests.simulation.checkers import check
from tests.simulation.drawing import draw
from tests.simulation.plan import Plan
from tests.simulation.world import World

__all__ = ["RUNS", "Failure", "Figures", "Outcome", "run_chunk", "run_history", "run_plan", "run_world", "tell_history"]

HISTORY_LENGTH = 150


class Failure(Exception):
    """A run whose check failed, or whose engine raised; the message has the seed and the reason."""


class Figures:
    """What happened in many runs.

    Attributes:
        counts: how often what happened.
        longest: by what it is, the most of it in ms and the seed.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.longest: dict[str, tuple[float, int]] = {}

    def add(self, other: Figures) -> None:
        """Take in the figures of other runs."""
        self.counts += other.counts
        for what, most in other.longest.items():
            self.longest[what] = max(self.longest.get(what, (0.0, -1)), most)


def run_plan(plan: Plan, figures: Figures | None = None, **kinds: Any) -> None:
    """Run the world of a plan and check it; `kinds` are other classes of engine, owner or broker.

    Raises:
        Failure: it does not hold.
    """
    world = World(plan, **kinds)
    _run(f"world {plan.seed}", lambda: _world(world))
    if figures is not None:
        figures.counts += world.counts
        figures.counts["records of activity"] += sum(map(len, world.broker.activity))
        figures.counts["seconds of true time"] += int(world.now / 1000)
        for what, (ms, _) in world.longest.items():
            figures.longest[what] = max(figures.longest.get(what, (0.0, -1)), (ms, plan.seed))


def run_world(seed: int, figures: Figures | None = None, **kinds: Any) -> None:
    """Run the world of a seed and check it."""
    run_plan(draw(seed), figures, **kinds)


def run_history(
    seed: int,
    _: Figures | None = None,
    *,
    engine_class: type[Any] = PartitionEngine,
    length: int = HISTORY_LENGTH,
) -> None:
    """Write one history and have the engine read the first `length` records of it."""
    history = _history(seed)
    steps = history.write(HISTORY_LENGTH)[:length]
    _run(f"history {seed}", lambda: replay(steps, history.settings, random.Random(~seed), engine_class))


def tell_history(seed: int, **kinds: Any) -> str:
    """Return the shortest beginning of a history that fails, record by record, and why it fails."""
    for length in range(1, HISTORY_LENGTH + 1):
        try:
            run_history(seed, length=length, **kinds)
        except Failure as failure:
            history = _history(seed)
            records = [step.record for step in history.write(HISTORY_LENGTH)[:length]]
            told = [f"{one.offset:5}  {one.timestamp}  {one.value!r}" for one in records]
            return "\n".join([str(history.settings), *told, str(failure)])
    return f"history {seed} holds"


def _world(world: World) -> None:
    world.run()
    check(world)


def _history(seed: int) -> History:
    rng = random.Random(seed)
    return History(rng, random_settings(rng))


def _run(name: str, run: Callable[[], None]) -> None:
    try:
        run()
    except Exception as error:
        raise Failure(f"{name}: {type(error).__name__}: {error}") from error


RUNS: dict[str, Callable[[int, Figures], None]] = {"worlds": run_world, "histories": run_history}

Outcome = tuple[int, Figures, "tuple[int, str] | None"]
"""How many seeds held, what happened in them, and the seed and the reason of the first that did not."""


def run_chunk(name: str, seeds: range) -> Outcome:
    """Run seeds of one kind, up to the first that fails."""
    figures = Figures()
    for seed in seeds:
        try:
            RUNS[name](seed, figures)
        except Failure as failure:
            return seed - seeds.start, figures, (seed, str(failure))
    return len(seeds), figures, None
