"""What is the least of a failing plan that still fails, and what happens in it?

Faults, people, orders and policies are left out one at a time, and people's last acts, as long as the run still fails
at the same check (the first word of its message). What is left is run once more with a transcript.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tests.simulation.plan import Plan
from tests.simulation.runs import Failure, run_plan
from tests.simulation.world import World

__all__ = ["failure_of", "shrink", "transcript"]

RUNS_MAX = 400
LINE_MAX, LINES_MAX = 400, 400
_MAC = re.compile(r',"mac":"[^"]*"')


def failure_of(plan: Plan, **kinds: Any) -> str | None:
    """Return why a plan fails, or None."""
    try:
        run_plan(plan, **kinds)
    except Failure as failure:
        return str(failure)
    return None


def shrink(plan: Plan, fails: Callable[[Plan], str | None] = failure_of) -> Plan:
    """Return a plan that fails at the same check, and from which nothing can be left out; it may be the same."""
    check = _check_of(fails(plan))
    runs, smaller = 0, True
    while smaller and runs < RUNS_MAX:
        smaller = False
        for less in _less(plan):
            runs += 1
            if _check_of(fails(less)) == check:
                plan, smaller = less, True
                break
            if runs >= RUNS_MAX:
                break
    return plan


def _check_of(failure: str | None) -> str | None:
    """Return the error's name and the check's: `world 7: AssertionError: early: ...` is both."""
    return None if failure is None else ":".join(failure.split(":")[1:3])


def _less(plan: Plan) -> Iterator[Plan]:
    for name in ("faults", "people", "orders", "policies"):
        parts = getattr(plan, name)
        if len(parts) > 2:
            yield replace(plan, **{name: parts[: len(parts) // 2]})
            yield replace(plan, **{name: parts[len(parts) // 2 :]})
        for n in range(len(parts)):
            yield replace(plan, **{name: parts[:n] + parts[n + 1 :]})
    for n, person in enumerate(plan.people):
        # Only from the end: acts left out in the middle would make pauses that no person of a plan makes.
        for kept in sorted({0, len(person.acts) // 2, len(person.acts) - 1}):
            if 0 <= kept < len(person.acts):
                less = replace(person, acts=person.acts[:kept], closed_at=None)
                yield replace(plan, people=(*plan.people[:n], less, *plan.people[n + 1 :]))


def transcript(plan: Plan, **kinds: Any) -> str:
    """Return what a plan has and what happens in it, in order."""
    world = World(plan, tell=True, **kinds)
    lines = [
        f"clock {plan.clock}, {plan.partitions} partitions, {plan.workers} workers, leaders {plan.leaders}",
        f"skews {plan.skews}, {plan.limits}",
    ]
    lines += map(str, (*plan.faults, *plan.orders, *plan.policies, *plan.people))
    try:
        world.run()
    except Exception as error:  # whatever it is, it is the failure that is told
        world.say(f"{type(error).__name__}: {error}")
    told = [f"{t:10.1f}  {_MAC.sub('', what)}"[:LINE_MAX] for t, what in world.transcript]
    if len(told) > LINES_MAX:
        told[LINES_MAX:] = [f"            and {len(told) - LINES_MAX} lines more"]
    return "\n".join([*lines, *told])
