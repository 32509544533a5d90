"""How long does `Guard.check` take?

A guard with 100,000 denials answers for sessions that may go on and for sessions that are refused. The baseline is
one look-up in a dict of the same size, the least that any answer needs. Medians over repeats of many calls, in one
thread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from lapse.consumers.testing import MemoryFeed
from lapse.schemas import session_reference

from benchmarks.report import report, say

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
    for asked, sessions in (("allowed", live), ("refused", ended[:: DENIALS // _CALLS])):
        assert bool(guard.check(sessions[0])) == (asked == "allowed"), "the guard answers wrongly"
        check = guard.check
        nanoseconds = _median_ns(
            lambda session: check(session, subject="u", started_at=started_at),  # noqa: B023  # called at once
            sessions,
        )
        baseline = _median_ns(plain.get, sessions)
        report(
            "check",
            nanoseconds,
            "ns",
            baseline,
            asked=asked,
            denials=DENIALS,
            baseline_is="a bare dict look-up in the same loop",
        )


def _median_ns(call: Callable[[str], object], sessions: Sequence[str]) -> float:
    timings = []
    for _ in range(_REPEATS):
        began = time.perf_counter_ns()
        for session in sessions:
            call(session)
        timings.append((time.perf_counter_ns() - began) / len(sessions))
    return statistics.median(timings)
