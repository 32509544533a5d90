"""Do a few hundred seeds hold? `python -m tests.simulation --seeds N` runs as many as one has time for."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.simulation.__main__ import main
from tests.simulation.runs import run_history, run_world
from tests.simulation.world import World

CHUNK = 20


@pytest.mark.parametrize("first", range(0, 160, CHUNK))
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
    first, second = World(7), World(7)
    first.run()
    second.run()
    assert first.log.records == second.log.records
    assert [said for _, _, said in first.said] == [said for _, _, said in second.said]


def test_worlds_break_what_they_are_for() -> None:
    """A simulation is worth what its seeds hit: outages, crashes, repeated work, held endings, every cause."""
    causes: Counter[str] = Counter()
    held = repeated = outages = crashes = 0
    for seed in range(60):
        world = World(seed)
        world.run()
        outages += len(world.plan.outages)
        crashes += len(world.plan.crashes)
        repeated += sum(count for _, count, _ in world.said) - len(world.log.records)
        endings = {e.session: e for _, _, said in world.said for e in said.endings}
        causes.update(ending.cause.value for ending in endings.values())
        held += sum(ending.held for ending in endings.values())
    assert min(causes[cause] for cause in ("idle", "absolute", "closed", "revoked")) >= 15, causes
    assert held >= 15
    assert min(outages, crashes) >= 30
    assert repeated >= 200


def test_the_command_reports_and_names_what_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It prints how many seeds a second, and on failure the seed."""
    assert main(["--seeds", "2", "--first", "3"]) == 0
    out = capsys.readouterr().out
    assert "worlds: 2 seeds from 3 held" in out
    assert "seeds/s" in out

    def broken(world: World) -> None:
        raise AssertionError("it broke")

    monkeypatch.setattr("tests.simulation.runs.check", broken)
    assert main(["--seeds", "2", "--first", "3", "--only", "worlds"]) == 1
    assert "seed 3 failed" in capsys.readouterr().out
