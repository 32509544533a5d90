"""Run many scenarios: `python -m tests.simulation.clock --scenarios N [--set S] [--seed K] [--estates]`.

Exits with 1, and the seeds, where log time or a stamp fell, or an excess is beyond what the set may show.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulation.clock.estate import live
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


def run_estates(conditions: Conditions, seeds: range) -> bool:
    """Let the estates of one set live and print a row; return whether none was early, missed or wrong."""
    said, late, bad = Counter[str](), list[float](), list[str]()
    for seed in seeds:
        verdict = live(seed, conditions)
        said.update(
            early=len(verdict.early), missed=len(verdict.missed), wrong=len(verdict.wrong), endings=verdict.endings
        )
        said.update(alarms=verdict.alarms, waited=verdict.waited, restored=verdict.restored)
        late += verdict.late_ms
        bad += [f"seed {seed}: {what[:200]}" for what in (*verdict.early, *verdict.missed, *verdict.wrong)]
    print(
        f"| {conditions.name} | {len(seeds):,} | {said['endings']:,} | {said['early']} | {said['missed']} | "
        f"{said['wrong']} | p50 {_percentile(late, 0.5):.0f} ms, p95 {_percentile(late, 0.95) / 1000:.1f} s | "
        f"{said['alarms']} | {said['waited']:,} | {said['restored']:,} |",
        flush=True,
    )
    for line in bad[:8]:
        print(f"  {line}")
    return not bad


def main() -> int:
    """Run the sets named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.clock", description=__doc__)
    parser.add_argument("--scenarios", type=int, default=7_000, help="in all, over the sets evenly")
    parser.add_argument("--set", type=int, choices=range(len(SETS)), help="only this set")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--estates", action="store_true", help="the whole engine, with sessions (estate.py)")
    given = parser.parse_args()
    sets = SETS if given.set is None else (SETS[given.set],)
    seeds = range(given.seed, given.seed + max(given.scenarios // len(sets), 1))
    if given.estates:
        print("| set | estates | endings | early | missed | wrong | late | alarms | waited | restored |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        fine = [run_estates(conditions, seeds) for conditions in sets]
        return 0 if all(fine) else 1
    print("| set | scenarios | earliest | over 700 ms | waited | lag | rate |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    fine = [run(conditions, seeds) for conditions in sets]
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
