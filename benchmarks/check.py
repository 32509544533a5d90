"""How long does `Guard.check` take?

A guard with 100,000 denials answers for sessions that may go on and for sessions that are refused. The baseline is
one look-up in a dict of the same size, the least that any answer needs. Medians over repeats of many calls, in one
thread; p99 is that of single calls, each between two readings of the clock, whose own time is taken off. `sync` is the
guard for threaded services. Cutoffs are present in all of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from lapse.consumers.testing import MemoryFeed
from lapse.schemas import session_reference

from benchmarks.report import percentile, report, say

__all__ = ["run"]

DENIALS = 100_000
_CALLS = 20_000
_REPEATS = 25


async def run() -> None:
    """`check`, for allowed and for refused sessions."""
    feed = MemoryFeed()
    guard = feed.guard(service="bench")
    say(f"check: {DENIALS} endings")
    ended = [session_reference(f"ended-{number}") for number in range(DENIALS)]
    for session in ended:
        feed.end(session, subject="someone")
    feed.revoke(subject="somebody else")
    plain = dict.fromkeys(ended, True)
    started_at = feed.clock.now_at
    live = [session_reference(f"live-{number}") for number in range(_CALLS)]
    sync = feed.sync_guard(service="bench")
    sync.start()
    for asked, sessions in (("allowed", live), ("refused", ended[:: DENIALS // _CALLS])):
        baseline = _median_ns(plain.get, sessions)
        for front, one in (("async", guard), ("sync", sync)):
            check = one.check
            assert bool(check(sessions[0])) == (asked == "allowed"), "the guard answers wrongly"

            def ask(session: str, check: Callable[..., object] = check) -> object:
                return check(session, subject="u", started_at=started_at)

            report(
                "check",
                _median_ns(ask, sessions),
                "ns",
                baseline,
                asked=asked,
                front=front,
                denials=DENIALS,
                p99_ns=_p99_ns(ask, sessions),
                baseline_is="a bare dict look-up in the same loop",
            )


def _p99_ns(call: Callable[[str], object], sessions: Sequence[str]) -> float:
    clock = time.perf_counter_ns
    singles, empty = [], []
    for session in sessions:
        began = clock()
        call(session)
        singles.append(clock() - began)
        began = clock()
        empty.append(clock() - began)
    return percentile(singles, 99) - statistics.median(empty)


def _median_ns(call: Callable[[str], object], sessions: Sequence[str]) -> float:
    timings = []
    for _ in range(_REPEATS):
        began = time.perf_counter_ns()
        for session in sessions:
            call(session)
        timings.append((time.perf_counter_ns() - began) / len(sessions))
    return statistics.median(timings)
