"""Does a worker take as many touches a second with three million live sessions as with 100,000?

The estate grows from step to step. At each, a backlog of touches of random sessions is written while the worker is
down; then it restores its state and takes the backlog, timed from the first twentieth to the last. The value is the
worst of these rates, `worst_at` the estate that had it; the baseline is the rate at the smallest, `ratio` the one over
the other.
"""

from __future__ import annotations

from benchmarks.feed import Estate, producing
from benchmarks.lab import PARTITIONS, laboratory
from benchmarks.processor import taken
from benchmarks.report import report, say

__all__ = ["run"]

LIVE_SESSIONS = (100_000, 1_000_000, 3_000_000)
TOUCHES = 2_000_000
_DEADLINE_S = 240.0


async def run() -> None:
    """`scale`."""
    rates: dict[int, float] = {}
    async with laboratory("scale") as lab, producing(lab.settings.kafka) as producer:
        estate = Estate(0, PARTITIONS)
        for live in LIVE_SESSIONS:
            more = Estate(live - estate.count, PARTITIONS, first=estate.count)
            say(f"scale: {live} sessions are logged in")
            async with lab.worker() as worker:
                await more.start(producer, lab.topics.activity)
                await worker.until("lapse_live_sessions", live, _DEADLINE_S)
            estate.join(more)
            written = await estate.touch(producer, lab.topics.activity, TOUCHES, seed=live)
            async with lab.worker() as worker:
                rates[live], _ = await taken(worker, written)
                counted = await worker.number("lapse_live_sessions")
            assert counted == live, f"{counted:.0f} of {live} sessions are live: the touches did not all count"
            say(f"scale: {rates[live]:.0f} touches/s")
    first = rates[LIVE_SESSIONS[0]]
    worst = min(rates, key=lambda live: rates[live])
    report(
        "scale",
        rates[worst],
        "touches/s",
        first,
        worst_at=worst,
        **{f"at_{live}": rate for live, rate in rates.items()},
        baseline_is=f"the same worker with {LIVE_SESSIONS[0]} live sessions",
    )
