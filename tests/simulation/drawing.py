"""Which plan does a seed stand for?

Half a minute in which things break, then a quiet end in which everything heals. Steps of the broker's clock keep to
what docs/adr/0006-disciplined-log-time.md promises to hold: 15 s apart or more, the workers' walls right, not in the
first seconds of a partition's first owner.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from tests.simulation.plan import (
    MARGIN_MS,
    STEPS,
    Act,
    ClockStep,
    Crash,
    Fault,
    Leave,
    Limits,
    Order,
    Outage,
    Person,
    Plan,
    PolicyChange,
    Shuffle,
    Stall,
)

__all__ = ["draw"]

_FAULTS_UNTIL_MS = 36_000
_FIRST_LOGIN_MS = 1_500
_LAST_LOGIN_MS = 24_000
_FIRST_FAULT_MS = 3_000
_STEPS_APART_MS = 15_000


def draw(seed: int) -> Plan:
    """Return the plan of a seed, always the same."""
    rng = random.Random(seed)
    partitions, workers = rng.choice((2, 2, 3)), rng.choice((2, 2, 3))
    clock: Literal["disciplined", "append"] = "append" if rng.random() < 0.2 else "disciplined"
    limits = Limits(rng.choice((4000, 6000, 10_000)), rng.choice((12_000, 20_000, 30_000)), rng.choice((None, 1500)))
    outages = _outages(rng)
    faults: list[Fault] = [*outages, *_worker_faults(rng, workers)]
    steps = _clock_steps(rng) if clock == "disciplined" else []
    faults += steps
    skews = (0, rng.randint(-20, 20))
    leads = {
        # A revocation is stamped by its own topic's leader; one that was set is not promised (ADR 0006 h).
        "activity": tuple(rng.randint(0, 1) for _ in range(partitions)),
        "revocations": tuple(1 for _ in range(partitions)),
    }
    interval_ms = rng.choice((500, 1500))
    orders, policies = _orders(rng), _policies(rng, limits)
    people = tuple(
        _person(rng, f"p{n}", limits, [order.at for order in orders], outages, interval_ms)
        for n in range(rng.randint(3, 9))
    )
    return Plan(
        seed=seed,
        clock=clock,
        partitions=partitions,
        workers=workers,
        limits=limits,
        hold_max_ms=2000,
        touch_interval_ms=interval_ms,
        skews=skews,
        leaders=leads,
        people=people,
        orders=tuple(orders),
        policies=tuple(policies),
        faults=tuple(sorted(faults, key=lambda fault: fault.at)),
        faults_until=_FAULTS_UNTIL_MS,
    )


def _outages(rng: random.Random) -> list[Outage]:
    outages: list[Outage] = []
    at = rng.randint(_FIRST_FAULT_MS, 18_000)
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        until = at + rng.randint(3500, 9000)
        outages.append(Outage(at, until))
        at = until + rng.randint(6000, 12_000)
    return [outage for outage in outages if outage.until <= _FAULTS_UNTIL_MS]


def _worker_faults(rng: random.Random, workers: int) -> list[Fault]:
    faults: list[Fault] = []
    for _ in range(rng.choice((0, 1, 1, 2, 3, 4))):
        at, worker = rng.randint(_FIRST_FAULT_MS, _FAULTS_UNTIL_MS - 4000), rng.randrange(workers)
        step = rng.choice((None, *STEPS))
        kind = rng.random()
        if kind < 0.45:
            faults.append(Crash(at, worker, step, rng.choice((50, 1000, 4000, 9000))))
        elif kind < 0.75:
            faults.append(Stall(at, worker, step, rng.choice((300, 2500, 8000, 14_000))))
        elif kind < 0.88:
            faults.append(Shuffle(at))
        else:
            faults.append(Leave(at, worker, rng.choice((500, 5000))))
    return faults


def _clock_steps(rng: random.Random) -> list[ClockStep]:
    steps: list[ClockStep] = []
    at = rng.randint(4000, 20_000)
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        size = rng.choice((rng.randint(20, 250), rng.randint(250, 5000), rng.randint(5000, 3_600_000), 8 * 86_400_000))
        by = rng.choice((-1, 1)) * size
        if steps and rng.random() < 0.5:
            by = -steps[-1].by
        if at <= _FAULTS_UNTIL_MS:
            steps.append(ClockStep(at, by, 0))
        at += _STEPS_APART_MS + rng.randint(0, 5000)
    return steps


def _orders(rng: random.Random) -> list[Order]:
    orders: list[Order] = []
    for n in range(rng.choice((0, 1, 1, 2, 3))):
        at, id = rng.randint(3000, _FAULTS_UNTIL_MS - 2000), f"r-{n}"
        subject, tenant = _who(rng)
        misplaced = rng.random() < 0.2
        kind = rng.random()
        if kind < 0.6:
            orders.append(Order(at, id, subject=subject, tenant=tenant, misplaced=misplaced))
        elif kind < 0.8:
            orders.append(Order(at, id, session=f"p{rng.randrange(9)}", misplaced=misplaced))
        elif kind < 0.93:
            orders.append(Order(at, id, tenant="acme"))
        else:
            orders.append(Order(at, id))
    return orders


def _policies(rng: random.Random, limits: Limits) -> list[PolicyChange]:
    changes: list[PolicyChange] = []
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        idle = rng.choice((limits.idle_ms // 2, limits.idle_ms + 3000, 2 * limits.idle_ms))
        absolute = rng.choice((limits.absolute_ms, limits.absolute_ms - 4000, limits.absolute_ms + 8000))
        changes.append(PolicyChange(rng.randint(4000, _FAULTS_UNTIL_MS), Limits(idle, absolute, limits.warn_before_ms)))
    return sorted(changes, key=lambda change: change.at)


def _who(rng: random.Random) -> tuple[str, str | None]:
    return f"u-{rng.randrange(5)}", rng.choice((None, None, "acme"))


def _person(
    rng: random.Random, session: str, limits: Limits, orders: Sequence[int], outages: list[Outage], interval_ms: int
) -> Person:
    """Draw a person who acts with pauses that are clearly below or above the idle limit, and may log out."""
    subject, tenant = _who(rng)
    idle = limits.idle_ms
    at = rng.randint(_FIRST_LOGIN_MS, _LAST_LOGIN_MS)
    while any(abs(at - order) < MARGIN_MS for order in orders):
        at += 2 * MARGIN_MS
    login_at, acts, last = at, list[Act](), at
    until = login_at + limits.absolute_ms + rng.choice((-10_000, 3000))
    services = rng.choice((1, 1, 2))
    for _ in range(rng.choice((0, 3, 12, 25))):
        pause = rng.randint(idle + MARGIN_MS, 2 * idle)
        if rng.random() >= 0.05 or _is_near(outages, last, last + pause, 2 * interval_ms):
            pause = rng.randint(1, min(idle - MARGIN_MS, rng.choice((300, 2000, 20_000))))
        at = last + pause
        if at > until:
            break
        kind = rng.choice(("touch", "touch", "touch", "touch", "elevate", "refresh"))
        # A publisher joins touches over an outage and cannot tell what a job between them stands for.
        jobs = kind == "touch" and not _is_near(outages, at - idle, at + 2 * idle, 2 * interval_ms)
        hold_ms = rng.choice((0, 0, 0, 1500)) if jobs else 0
        acts.append(Act(at, kind, rng.randrange(services), hold_ms))  # type: ignore[arg-type]  # one of the three
        if kind != "refresh":
            last = max(last, acts[-1].until)
    closed_at = last + rng.randint(10, idle - MARGIN_MS) if rng.random() < 0.3 else None
    return Person(session, subject, tenant, login_at, tuple(acts), closed_at, scattered=rng.random() < 0.12)


def _is_near(outages: list[Outage], start: int, end: int, near_ms: int) -> bool:
    """Return whether touches around a pause may be joined over it: then the log cannot tell what truly was."""
    return any(start < outage.until + near_ms and end > outage.at - near_ms for outage in outages)
