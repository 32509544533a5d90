"""How much memory does a denial take?

A process of its own reads a million endings, as they come from a broker, into a guard's memory; the difference of its
resident memory, with nothing else kept, is divided by their number. The baseline is another process that puts the same
references into a plain dict of text to int. tracemalloc's figure (what was asked for, without what the allocator rounds
up) comes from a third.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

from lapse.consumers.guard.denials import Denials
from lapse.consumers.guard.freshness import Freshness
from lapse.consumers.guard.hooks import Hooks
from lapse.consumers.guard.intake import Intake
from lapse.schemas import TopicNames

from benchmarks.endings import ending_values
from benchmarks.report import report, say

__all__ = ["run"]

DENIALS = 1_000_000
_SLICE = 250
_NOW_AT = 1_800_000_000_000


@dataclass(frozen=True, slots=True)
class _Record:
    offset: int
    timestamp: int
    value: bytes


async def run() -> None:
    """`denial_memory`."""
    say(f"denial_memory: {DENIALS} endings")
    guard, plain, asked = [await _in_a_process(how) for how in ("guard", "plain", "traced")]
    report(
        "denial_memory",
        guard,
        "bytes",
        plain,
        denials=DENIALS,
        asked_for=asked,
        baseline_is="a plain dict of reference to int",
    )


async def _in_a_process(how: str) -> float:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.denials", how, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, f"the process for {how} ended with {process.returncode}"
    return float(json.loads(said)) / DENIALS


def _resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _fill(kept: int) -> Intake:
    """Return an intake that has read so many endings."""
    intake = Intake(TopicNames(), Denials(), Freshness(10_000, 0.0), Hooks())
    intake.begin("expiries", [kept], [0])
    records = []
    for number, (_, _, value) in enumerate(ending_values(kept, _NOW_AT)):
        records.append(_Record(number, _NOW_AT, value))
        if len(records) == _SLICE:
            intake.apply("expiries", 0, records, 0.0)
            records = []
    if records:
        intake.apply("expiries", 0, records, 0.0)
    assert intake.denials.entries == kept
    return intake


def _main(how: str) -> int:
    _fill(1_000)  # what is loaded and made once is no denial's memory
    if how == "traced":
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        kept: object = _fill(DENIALS)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    before = _resident()
    if how == "guard":
        kept = _fill(DENIALS)
    else:
        kept = {key.decode(): _NOW_AT + number for number, (_, key, _) in enumerate(ending_values(DENIALS, _NOW_AT))}
    after = _resident()
    del kept
    return after - before


if __name__ == "__main__":
    print(json.dumps(_main(sys.argv[1])))
