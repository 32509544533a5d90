"""Run many scenarios and print what came of them: `python -m tests.simulation.clock --scenarios N [--set S] [--seed K]`.

Exits with 1, and the seeds, where log time or a stamp fell, or an excess is beyond what the set may show.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.clock.model import SETS, Conditions, play

BOUND_MS = 700.0  # WIDE_MS or AGREE_MS, two leaders' skew of 300 ms, walls 40 ms apart, rounding


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)] if values else 0.0


def run(conditions: Conditions, seeds: range) -> bool:
    """Play the scenarios of one set and print a row; return whether all is as it must be."""
    began, worst, over, fell = time.perf_counter(), (-1e18, -1), [], []
    waited: list[float] = []
    lags: list[float] = []
    for seed in seeds:
        result = play(seed, conditions)
        worst = max(worst, (result.early, seed))
        if result.early > BOUND_MS:
            over.append((round(result.early), seed))
        if result.fell:
            fell.append(seed)
        waited += result.waited
        lags.append(result.lag)
    rate = len(seeds) / (time.perf_counter() - began)
    print(
        f"| {conditions.name} | {len(seeds):,} | {worst[0]:,.0f} ms (seed {worst[1]}) | {len(over)} | "
        f"p50 {_percentile(waited, 0.5):.0f} ms, p99 {_percentile(waited, 0.99) / 1000:.1f} s, "
        f"max {max(waited, default=0) / 1000:.1f} s | p50 {_percentile(lags, 0.5):.0f} ms, "
        f"p99 {_percentile(lags, 0.99) / 1000:.1f} s | {rate:.0f}/s |",
        flush=True,
    )
    if fell:
        print(f"  FELL: seeds {fell[:10]}")
    if over:
        print(f"  over {BOUND_MS:.0f} ms (early, seed): {sorted(over, reverse=True)[:12]}")
    return not fell


def main() -> int:
    """Run the sets named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.clock", description=__doc__)
    parser.add_argument("--scenarios", type=int, default=7_000, help="in all, over the sets evenly")
    parser.add_argument("--set", type=int, choices=range(len(SETS)), help="only this set")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    given = parser.parse_args()
    sets = SETS if given.set is None else (SETS[given.set],)
    seeds = range(given.seed, given.seed + max(given.scenarios // len(sets), 1))
    print("| set | scenarios | earliest | over 700 ms | waited | lag | rate |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    fine = [run(conditions, seeds) for conditions in sets]
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
