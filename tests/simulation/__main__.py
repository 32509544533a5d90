"""`python -m tests.simulation --seeds N [--first S] [--only worlds|histories]`: run seeds, report, name what fails.

Seeds are spread over processes (`--processes`). Of the first world that fails the seed is printed, then the least of
its plan that still fails (`--no-shrink`: all of it) and what happens in it; of the first history that fails, its
shortest beginning that does. `--first SEED --seeds 1` runs it again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

from tests.simulation.drawing import draw
from tests.simulation.runs import RUNS, Figures, Outcome, run_chunk, tell_history
from tests.simulation.shrink import failure_of, shrink, transcript

__all__ = ["main"]

CHUNK = 25
HISTORIES_IN = 2
"""One history is written for so many worlds."""


def main(arguments: list[str] | None = None) -> int:
    """Run the seeds and return the exit code: 0 all held, 1 one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--only", choices=sorted(RUNS), help="only this kind of run")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one a core")
    parser.add_argument("--no-shrink", action="store_true", help="print the whole plan of what fails")
    options = parser.parse_args(arguments)
    for name in RUNS:
        if options.only in (None, name) and not _run(name, options):
            return 1
    return 0


def _run(name: str, options: argparse.Namespace) -> bool:
    began, figures, done = time.perf_counter(), Figures(), 0
    seeds = options.seeds if name == "worlds" else max(options.seeds // HISTORIES_IN, 1)
    last = options.first + seeds
    chunks = [range(start, min(start + CHUNK, last)) for start in range(options.first, last, CHUNK)]
    told_at = began
    for count, more, failure in _outcomes(partial(run_chunk, name), chunks, options.processes):
        done += count
        figures.add(more)
        if failure is not None:
            rate = done / (time.perf_counter() - began)
            print(f"{name}: {done} held, {rate:.1f} seeds/s; seed {failure[0]} failed\n{failure[1]}", flush=True)
            if name == "worlds":
                _explain(failure[0], whole=options.no_shrink)
            else:
                print(tell_history(failure[0]), flush=True)
            return False
        if time.perf_counter() - told_at > 60:
            told_at = time.perf_counter()
            print(f"{name}: {done} of {seeds}, {done / (told_at - began):.1f} seeds/s", file=sys.stderr, flush=True)
    rate = done / (time.perf_counter() - began)
    print(
        f"{name}: {done} seeds from {options.first} held, {rate:.1f} seeds/s, {options.processes} processes", flush=True
    )
    for what, times in sorted(figures.counts.items()):
        print(f"  {times:>12,}  {what}")
    for what, (ms, seed) in sorted(figures.longest.items()):
        print(f"  {ms / 1000:>10.2f} s  {what} (seed {seed})")
    return True


def _outcomes(run: Callable[[range], Outcome], chunks: list[range], processes: int) -> Iterator[Outcome]:
    if processes == 1 or len(chunks) == 1:
        yield from map(run, chunks)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(run, chunks)


def _explain(seed: int, *, whole: bool) -> None:
    plan = draw(seed) if whole else shrink(draw(seed))
    print(transcript(plan))
    print(failure_of(plan), flush=True)


if __name__ == "__main__":
    sys.exit(main())
