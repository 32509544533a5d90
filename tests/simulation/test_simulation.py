"""Do a few hundred seeds hold? `make simulate SEEDS=n` runs as many as one has time for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from tests.simulation import runs
from tests.simulation.__main__ import main
from tests.simulation.drawing import draw
from tests.simulation.plan import STEPS, ClockStep, Outage, Plan
from tests.simulation.runs import Figures, run_history, run_world
from tests.simulation.shrink import shrink
from tests.simulation.world import World

CHUNK = 20


@pytest.mark.parametrize("first", range(0, 300, CHUNK))
def test_worlds_hold(first: int) -> None:
    """No session ends early and none is missed, whatever broke in the world of these seeds."""
    for seed in range(first, first + CHUNK):
        run_world(seed)


@pytest.mark.parametrize("first", range(5000, 5080, CHUNK))
def test_histories_hold(first: int) -> None:
    """The engine says what the oracle says to the logs of these seeds."""
    for seed in range(first, first + CHUNK):
        run_history(seed)


def test_the_same_seed_is_the_same_run() -> None:
    """A failure's seed is worth something: the run repeats itself, record by record."""
    first, second = World(draw(7)), World(draw(7))
    first.run()
    second.run()
    assert first.broker.activity == second.broker.activity
    assert first.broker.said == second.broker.said
    assert first.broker.commits == second.broker.commits


def test_worlds_break_what_they_are_for() -> None:
    """A simulation is worth what its seeds hit: each step, outages, zombies, held endings, every cause."""
    figures = Figures()
    for seed in range(1000, 1100):
        run_world(seed, figures)
    counts = figures.counts
    assert min(counts[f"ended: {cause}"] for cause in ("idle", "absolute", "closed", "revoked")) >= 30, counts
    assert sum(counts[f"crash: {step}"] + counts[f"stall: {step}"] > 0 for step in STEPS) == len(STEPS), counts
    for what in ("zombies", "refused by the fence", "clean stops", "ended: held", "a worker found its place again"):
        assert counts[what] >= 5, what
    for what in ("outages", "clock steps", "alarms of clock steps", "partitions moved", "forwarded"):
        assert counts[what] >= 30, what


def test_plans_draw_steps_of_every_kind_at_a_distance() -> None:
    """Steps of clocks are of 20 ms to days, in both directions, and as far apart as is promised."""
    kinds: Counter[str] = Counter()
    for seed in range(300):
        plan = draw(seed)
        steps = [fault for fault in plan.faults if isinstance(fault, ClockStep)]
        assert plan.clock == "disciplined" or not steps
        assert all(b.at - a.at >= 15_000 for a, b in pairwise(steps))
        for step in steps:
            size = next(name for name, most in _SIZES if abs(step.by) <= most)
            kinds[f"{'back' if step.by < 0 else 'forward'} by {size}"] += 1
    assert len(kinds) == 2 * len(_SIZES), kinds


_SIZES = (("a bracket", 250), ("seconds", 5000), ("an hour", 3_600_000), ("days", 8 * 86_400_000))


def test_a_failing_plan_is_made_as_small_as_it_fails() -> None:
    """What does not matter is left out: of this one the outage matters, and one person."""
    seed = next(seed for seed in range(100) if draw(seed).outages and len(draw(seed).faults) > 3)

    def fails(plan: Plan) -> str | None:
        return "world: AssertionError: early: so" if plan.outages and plan.people else None

    least = shrink(draw(seed), fails)
    assert [type(fault) for fault in least.faults] == [Outage]
    assert len(least.people) == 1
    assert (least.people[0].acts, least.orders, least.policies) == ((), (), ())
    assert replace(least, people=(), faults=()).people == ()


def test_the_command_reports_and_names_what_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It prints how many seeds a second, and on failure the seed and what happened."""
    assert main(["--seeds", "2", "--first", "3", "--processes", "1"]) == 0
    out = capsys.readouterr().out
    assert "worlds: 2 seeds from 3 held" in out
    assert "seeds/s" in out

    def broken(world: World) -> None:
        raise AssertionError("broken: so")

    monkeypatch.setattr(runs, "check", broken)
    assert main(["--seeds", "2", "--first", "3", "--only", "worlds", "--processes", "1"]) == 1
    out = capsys.readouterr().out
    assert "seed 3 failed" in out
    assert "operator: policies-0@0" in out
