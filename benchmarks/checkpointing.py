"""What do checkpoints cost a worker under full load?

One backlog of touches is taken twice: by a worker that checkpoints once a minute, and is killed before the first, so
that nothing of it is saved; and by one that checkpoints as it does by default. Each is timed from the first twentieth
of the backlog to the last. `ratio` is the throughput with checkpoints over that without.
"""

from __future__ import annotations

from benchmarks.feed import Estate, producing
from benchmarks.lab import PARTITIONS, laboratory
from benchmarks.processor import taken
from benchmarks.report import report, say

__all__ = ["run"]

LIVE_SESSIONS = 100_000
TOUCHES = 4_000_000
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
        written = await estate.touch(producer, lab.topics.activity, TOUCHES, seed=7)
        async with lab.worker(checkpoint_interval_ms=_NEVER_MS) as worker:
            without, _ = await taken(worker, written)
            count = await worker.number("lapse_checkpoint_seconds_count")
            assert count == 0, f"{count:.0f} checkpoints were written"
            await worker.kill()
        async with lab.worker() as worker:
            with_them, _ = await taken(worker, written)
            count = await worker.number("lapse_checkpoint_seconds_count")
            seconds = await worker.number("lapse_checkpoint_seconds_sum")
    report(
        "checkpoints",
        with_them,
        "touches/s",
        without,
        checkpoints=int(count),
        checkpoint_ms=1000 * seconds / count,
        live_sessions=LIVE_SESSIONS,
        touches=written,
        baseline_is="the same worker without a checkpoint",
    )
