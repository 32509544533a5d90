"""Goal: wherever a worker dies, nothing ends early, nothing is missed, each ending has one id, the state is whole.

Method: `lapse run` on three brokers under a load of real publishers, killed by SIGKILL at each step of the order of
effects (failpoints.py) again and again; each time it is started anew, as a supervisor does. Afterwards the verifier
recomputes everything from the topics.
"""

from __future__ import annotations

import random
import time

import pytest

from lapse.pipeline.processor.failpoints import (
    AFTER_ACK_BEFORE_COMMIT,
    BEFORE_PUBLISH,
    FAILPOINTS,
    MID_CHECKPOINT,
    MID_RESTORE,
    VARIABLE,
)

from tests.faults.estate import Estate
from tests.faults.reporting import note

# The n-th pass that kills, at most: a restore is passed once a start; the others several times a second.
_PASSES_MAX = {BEFORE_PUBLISH: 8, AFTER_ACK_BEFORE_COMMIT: 12, MID_CHECKPOINT: 12, MID_RESTORE: 1}
# Kill follows on kill, and what a partition had to tell may be met by several of them: a start takes some 6 s on a
# machine with much else to do, and with the kills within the restore an ending was seen to come after 27 s.
_MET_BY_SEVERAL_S = 60.0


def killed_at(estate: Estate, failpoint: str, times: int, seed: int) -> None:
    chance = random.Random(seed)
    worker = estate.worker("w-1")
    estate.load(seed=seed)
    for _ in range(times):
        worker.start(**{VARIABLE: f"{failpoint}:{chance.randint(1, _PASSES_MAX[failpoint])}"})
        assert worker.wait() == -9, worker.log[-3000:]
        if failpoint == MID_RESTORE:
            # Else there would never be anything new to restore.
            worker.start()
            estate.owned_by("w-1")
            time.sleep(chance.uniform(0.2, 1.5))
            worker.kill()
    worker.start()
    estate.owned_by("w-1")
    estate.end_load()
    note(f"kill -9 at {failpoint}, {times} times", estate.verify(_MET_BY_SEVERAL_S))
    assert worker.stop() == 0


@pytest.mark.faults
@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_twenty_kills_at_one_step(estate: Estate, failpoint: str) -> None:
    killed_at(estate, failpoint, 20, seed=11)


@pytest.mark.slow
def test_a_kill_at_each_step(estate: Estate) -> None:
    """The short form of the above: one kill at each step, one after the other, on the same topics."""
    worker = estate.worker("w-1")
    estate.load(seed=12)
    for failpoint in FAILPOINTS:
        worker.start(**{VARIABLE: f"{failpoint}:{min(3, _PASSES_MAX[failpoint])}"})
        assert worker.wait() == -9, worker.log[-3000:]
    worker.start()
    estate.owned_by("w-1")
    estate.end_load()
    note("kill -9 at each step, once", estate.verify())
