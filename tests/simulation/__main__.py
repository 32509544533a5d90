"""`python -m tests.simulation --seeds N [--first S] [--only worlds|histories]`: run seeds, report, name what fails.

A failure prints its seed; `--first SEED --seeds 1` runs it again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from tests.simulation.runs import RUNS, Failure

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the seeds and return the exit code: 0 all held, 1 one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--only", choices=sorted(RUNS), help="only this kind of run")
    options = parser.parse_args(arguments)
    return max(
        _run(name, run, options.first, options.seeds) for name, run in RUNS.items() if options.only in (None, name)
    )


def _run(name: str, run: Callable[[int], None], first: int, seeds: int) -> int:
    began = time.perf_counter()
    for seed in range(first, first + seeds):
        try:
            run(seed)
        except Failure as failure:
            print(f"{name}: seed {seed} failed\n{failure}", flush=True)
            return 1
    took = time.perf_counter() - began
    print(f"{name}: {seeds} seeds from {first} held, {seeds / took:.1f} seeds/s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
