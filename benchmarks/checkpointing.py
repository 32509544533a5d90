"""What do checkpoints cost a worker under full load?

Two backlogs of equally many touches are taken, each written while the worker is down: one by a worker that checkpoints
as it does by default, one by a worker that does so once a minute (the first partition's turn comes after an eighth of
that, in the middle of the backlog). Each is timed from the first twentieth of its backlog to the last. `ratio` is the
throughput with checkpoints over that without.
"""

from __future__ import annotations

from benchmarks.feed import Estate, producing
from benchmarks.lab import PARTITIONS, laboratory
from benchmarks.processor import taken
from benchmarks.report import report, say

__all__ = ["run"]

LIVE_SESSIONS = 100_000
TOUCHES = 3_000_000
_NEVER_MS = 60_000
_DEADLINE_S = 180.0


async def run() -> None:
    """`checkpoints`."""
    async with laboratory("checkpoints") as lab, producing(lab.settings.kafka) as producer:
        estate = Estate(LIVE_SESSIONS, PARTITIONS)
        say(f"checkpoints: {LIVE_SESSIONS} sessions log in")
        async with lab.worker() as worker:
            await estate.start(producer, lab.topics.activity)
            await worker.until("lapse_live_sessions", LIVE_SESSIONS, _DEADLINE_S)
        rates, counts, seconds = [], [], 0.0
        for interval_ms in (_NEVER_MS, lab.settings.checkpoint_interval_ms):
            written = await estate.touch(producer, lab.topics.activity, TOUCHES, seed=interval_ms)
            async with lab.worker(checkpoint_interval_ms=interval_ms) as worker:
                rate, _ = await taken(worker, written)
                rates.append(rate)
                counts.append(int(await worker.number("lapse_checkpoint_seconds_count")))
                seconds = await worker.number("lapse_checkpoint_seconds_sum")
    assert counts[0] <= 2, f"the worker without checkpoints has written {counts[0]}"
    report(
        "checkpoints",
        rates[1],
        "touches/s",
        rates[0],
        checkpoints=counts[1],
        checkpoint_ms=1000 * seconds / counts[1],
        live_sessions=LIVE_SESSIONS,
        touches=written,
        baseline_is="the same worker with checkpoints once a minute",
    )
