"""How much memory does a worker take that has a million live sessions?

Resident memory (RSS) of the worker's process, once all have logged in and been touched, over several checkpoints: the
largest of the readings is the value. Then the worker is started anew, since one that has restored its state has other
remains in its memory than one that saw everybody come. The baseline is the same worker without a session.
"""

from __future__ import annotations

import asyncio

from benchmarks.feed import Estate, producing
from benchmarks.lab import PARTITIONS, Worker, laboratory
from benchmarks.report import report, say

__all__ = ["run"]

LIVE_SESSIONS = 1_000_000
TOUCHES = 1_000_000
_WATCHED_S = 6.0  # three checkpoints of all that is dirty
_DEADLINE_S = 180.0


async def run() -> None:
    """`memory`."""
    async with laboratory("memory") as lab:
        async with lab.worker() as worker, producing(lab.settings.kafka) as producer:
            empty = worker.memory_mb()
            estate = Estate(LIVE_SESSIONS, PARTITIONS)
            say(f"memory: {LIVE_SESSIONS} sessions log in")
            await estate.start(producer, lab.topics.activity)
            await worker.until("lapse_live_sessions", LIVE_SESSIONS, _DEADLINE_S)
            seen = await worker.number("lapse_records_total")
            await estate.touch(producer, lab.topics.activity, TOUCHES, seed=7)
            await worker.until("lapse_records_total", seen + TOUCHES, _DEADLINE_S)
            grown, peak = await _watched(worker), worker.memory_mb("VmHWM")
        async with lab.worker() as worker:
            await worker.until("lapse_live_sessions", LIVE_SESSIONS, _DEADLINE_S)
            restored = await _watched(worker)
            restored_peak = worker.memory_mb("VmHWM")
    report(
        "memory",
        max(grown, restored),
        "MB",
        empty,
        after_logins=grown,
        after_restore=restored,
        peak_logins=peak,
        peak_restore=restored_peak,
        bytes_a_session=(max(grown, restored) - empty) * 1e6 / LIVE_SESSIONS,
        live_sessions=LIVE_SESSIONS,
        baseline_is="the same worker without a session",
    )


async def _watched(worker: Worker) -> float:
    readings = []
    for _ in range(int(_WATCHED_S / 0.2)):
        readings.append(worker.memory_mb())
        await asyncio.sleep(0.2)
    return max(readings)
