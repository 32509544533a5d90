"""Was anybody ended who was not over, or not ended who was? What people truly did, against what was published.

The promises of DESIGN.md, with no engine and no log but for one thing: the true instant at which the record that an
ending names as its evidence was appended, which is when it was decided.

Never early, whatever broke:
    idle       not before the idle limit after the last act of an unbroken chain of acts, the strictest limit of those
               that were in force by then; acts that may have been appended after the strictest absolute limit apart
    absolute   not before the login plus the strictest absolute limit
    revoked    an order covers the session; closed: the person logged out
Missed, within a bound: each session ends within PROMPT_MS of when it is over by the most lenient reading while nothing
is disturbed, else within HEALED_MS of that and of the end of what disturbed it.
Exactly: where no broker's clock was set, no policy changed and no service scatters, cause and due are those of what was
done.

Steps of clocks: SLACK_MS is what brackets and leaders' skew leave open (docs/adr/0006). What happened in the moments in
which the clock had not decided counts as come at their end, so causes may differ then. What the record does not promise
to hold is left out (`is_beyond_promise`), by the log: two steps between two ticks, or one before the first decision.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import orjson

from tests.simulation.broker import EPOCH_MS
from tests.simulation.plan import MARGIN_MS, Limits, Order, Person
from tests.simulation.service import PUBLISHED_MS
from tests.simulation.world import World

__all__ = ["HEALED_MS", "PROMPT_MS", "check_truth", "is_beyond_promise"]

from tests.engine.records import ref

SLACK_MS = 700.0
EXACT_MS = 3.0
"""Whole milliseconds cut off on two clocks, and 100 ppm over a session."""
OUTAGE_MS = 3_000.0
BETWEEN_DECISIONS_MS = 4_000.0  # the tick before the last one of an owner to the third of the next
DECISION_MS = 30_000.0
"""An order of the same seconds as a step may end logins after it (ADR 0006 h)."""
PROMPT_MS = 2_000.0
"""The grace, publishing, a copy within a second, and the tick."""
HEALED_MS = 15_000.0
"""A rebalance, a restore, a hold of 5 s, and reading what has gathered; the group's session timeout is counted in what
disturbs (World.disturbances)."""
TICKS_FIRST = 4


def check_truth(world: World, endings: dict[str, dict[str, Any]]) -> None:
    """Assert that every session ended, none early and none late.

    Args:
        endings: by session reference, as published.
    """
    for person in world.plan.people:
        ending = endings.get(ref(person.session))
        assert ending is not None, f"missed: {person.session} did not end"
        partition = world.plan.home(person)
        assert ending["evidence"]["partition"] == partition, f"place: {ending}"
        if is_beyond_promise(world, partition):
            world.counts["beyond what is promised"] += 1
            continue
        world.counts[f"ended: {ending['cause']}"] += 1
        world.counts["ended: held"] += ending["held"]
        decided = world.broker.activity[partition][ending["evidence"]["offset"]].t
        # What was forwarded has its age by the clock of the partition where it was found.
        stepped = any(
            person.scattered or world.plan.leaders["activity"][partition] == step.broker
            for step in world.plan.clock_steps
        )
        _check_not_early(world, person, ending, decided, stepped=stepped)
        _check_not_late(world, person, ending, decided)
        plain = not world.plan.clock_steps and len(world.adopted_at) == 1
        if plain and not person.scattered and not _is_kept_apart(world, person):
            _check_exactly(world, person, ending)


def is_beyond_promise(world: World, partition: int) -> bool:
    """Return whether the steps of the clock that leads a partition are none that ADR 0006 holds."""
    leader = world.plan.leaders["activity"][partition]
    steps = [step.at for step in world.plan.clock_steps if step.broker == leader]
    if not steps:
        return False
    log = world.broker.activity[partition]
    told = [(r.t, orjson.loads(r.value)["epoch"]) for r in log if r.value is not None and b"clock.tick" in r.value]
    ticks = [t for t, _ in told]
    if sum(tick < steps[0] for tick in ticks) < TICKS_FIRST:
        return True
    # A step in an outage, or not yet decided when it begins, with a change of owner in or next to it: nothing tells how
    # long it was (ADR 0006 g).
    for a, b in pairwise(ticks):
        epochs = {epoch for t, epoch in told if a - BETWEEN_DECISIONS_MS <= t <= b + BETWEEN_DECISIONS_MS}
        if b - a > OUTAGE_MS and len(epochs) > 1 and any(a - BETWEEN_DECISIONS_MS <= step < b for step in steps):
            return True
    edges = [0.0, *ticks, world.now]
    return any(sum(a <= step < b for step in steps) > 1 for a, b in pairwise(edges))


def _is_kept_apart(world: World, person: Person) -> bool:
    """Return whether several services kept a person's acts through an outage.

    Each then tells its own, and what the one tells first may look late without what the other tells afterwards.
    """
    return person.services > 1 and bool(world.plan.outages)


def _over_after(
    person: Person, limits: Limits, hold_max_ms: int, margin_ms: int = 0, known_until: float = math.inf
) -> int:
    """Return when the person is idle for too long: after the last act of the chain that no pause breaks.

    Args:
        known_until: later acts may not count.
    """
    last = person.login_at
    for act in person.acts:
        if act.kind == "refresh":
            continue
        if act.at >= min(last + limits.idle_ms, known_until) - margin_ms:
            break
        last = max(last, act.at + min(act.hold_ms, hold_max_ms))
    return last + limits.idle_ms


def _appended_before(world: World, absolute_due: float) -> float:
    """Return up to when acts are sure to have been appended before an absolute limit.

    What comes after it does not count, also where a longer limit is in force by then that the partition's log had not
    been told of yet.
    """
    outages = [outage.at for outage in world.plan.outages if outage.at < absolute_due <= outage.until]
    return min([absolute_due, *outages]) - world.plan.touch_interval_ms


def _covers(order: Order, person: Person, at: float, near_ms: float) -> bool:
    """Return whether an order of an instant ends a session; near_ms: logins so long after it may be meant, too."""
    if order.session is not None:
        return order.session == person.session
    if order.subject is not None and (order.subject, order.tenant) != (person.subject, person.tenant):
        return False
    if order.subject is None and order.tenant is not None and order.tenant != person.tenant:
        return False
    return person.login_at <= at + near_ms


def _check_not_early(world: World, person: Person, ending: dict[str, Any], decided: float, *, stepped: bool) -> None:
    plan, cause = world.plan, ending["cause"]
    slack = SLACK_MS if stepped else EXACT_MS
    if cause == "revoked":
        # Logins that had to wait for one decision all have its stamp: an order of that time ends them all.
        near = DECISION_MS if stepped else _undecided_ms(world, plan.home(person))
        by = [o for o in plan.orders if o.id in world.ordered_at and world.ordered_at[o.id] <= decided + slack]
        meant = [o.id for o in by if _covers(o, person, world.ordered_at[o.id], near)]
        assert ending["revocation"] in meant, f"early: {person} was revoked by {ending['revocation']} of {meant}"
        return
    if cause == "closed":
        assert person.closed_at is not None, f"early: {person} was closed"
        assert decided >= person.closed_at - slack, f"early: {person} was closed at {decided:.0f}"
        return
    in_force = [limits for at, limits in world.adopted_at if at <= decided]
    if cause == "absolute":
        over = person.login_at + min(limits.absolute_ms for limits in in_force)
    else:
        if person.scattered and plan.faults:
            return  # what is forwarded comes as late as the owner that forwards it
        if _is_kept_apart(world, person):
            return
        strictest = Limits(min(limits.idle_ms for limits in in_force), min(limits.absolute_ms for limits in in_force))
        # People keep clear of the limit that they know; a new one may pass between an act and its append.
        changed = len(world.adopted_at) > 1
        over = _over_after(
            person,
            strictest,
            plan.hold_max_ms,
            MARGIN_MS if changed else 0,
            _appended_before(world, person.login_at + strictest.absolute_ms) if changed else math.inf,
        )
    assert decided >= over - slack, (
        f"early: {person.session} ended as {cause} at {decided:.0f}, but was live until {over}"
    )


def _check_not_late(world: World, person: Person, ending: dict[str, Any], decided: float) -> None:
    plan = world.plan
    all_limits = [limits for _, limits in world.adopted_at]
    # A touch after the due may count where nobody could tell that it was: then the session lives on from it.
    last = max([person.login_at, *(act.at + min(act.hold_ms, plan.hold_max_ms) for act in person.acts)])
    over: float = min(
        last + max(limits.idle_ms for limits in all_limits),
        person.login_at + max(limits.absolute_ms for limits in all_limits),
    )
    for order in plan.orders:
        at = world.ordered_at.get(order.id)
        if at is not None and _covers(order, person, at, -SLACK_MS):
            over = min(over, max(at, person.login_at))
    if len(world.adopted_at) == 1 and not world.disturbances and not person.scattered:
        over = min(over, _over_after(person, plan.limits, plan.hold_max_ms))
        if person.closed_at is not None:
            over = min(over, max(person.closed_at, person.login_at))
    late = decided - over
    disturbed = max(
        [end for start, end in world.disturbances if start <= decided and end > over - HEALED_MS], default=0.0
    )
    if disturbed:
        bound = max(over, disturbed) + HEALED_MS
        world.worst("latest ending among faults", late, person.session)
    else:
        bound = over + PROMPT_MS
        world.worst("latest ending while all is well", late, person.session)
    if world.plan.clock_steps:
        # A step back at a change of owner holds log time back by the time between two decisions, in a time without
        # ticks by up to that time (ADR 0006 g).
        bound += max(_undecided_ms(world, plan.home(person)), BETWEEN_DECISIONS_MS)
    assert decided <= bound, (
        f"missed: {person.session} was over at {over:.0f} and ended at {decided:.0f} as {ending['cause']}, "
        f"disturbed until {disturbed:.0f}"
    )


def _undecided_ms(world: World, partition: int) -> float:
    """Return for how long what was appended had to wait for a decision, and counts as come at its end.

    Through a time without ticks, in which append times jump more than once, steps may have cancelled each other.
    """
    if world.plan.clock == "append":
        return 0.0
    log = world.broker.activity[partition]
    ticks = [0.0, *(r.t for r in log if r.value is not None and b"clock.tick" in r.value)]
    gap = max(b - a for a, b in pairwise(ticks))
    return gap + PROMPT_MS if gap > PROMPT_MS else 0.0


def _check_exactly(world: World, person: Person, ending: dict[str, Any]) -> None:
    plan = world.plan
    absolute = person.login_at + plan.limits.absolute_ms
    idle = _over_after(person, plan.limits, plan.hold_max_ms)
    (due, _, cause), (later, _, other) = sorted([(absolute, 0, "absolute"), (idle, 1, "idle")])
    if person.closed_at is not None and person.closed_at < due:
        (later, other), (due, cause) = (due, cause), (person.closed_at, "closed")
    right: set[tuple[str, float]] = {(cause, due)}
    grace = world.settings[0].grace_ms
    blur = PUBLISHED_MS + _undecided_ms(world, plan.home(person))
    if later <= due + blur + grace:
        right.add((other, later))  # which of both came first is within the time of publishing, or in a hold the grace
    if person.closed_at is not None and due <= person.closed_at <= due + blur:
        right.add(("closed", person.closed_at))  # the same: the login's record came so much after the login
    broken = bool(world.disturbances)
    orders = [(world.ordered_at[o.id], o) for o in plan.orders if o.id in world.ordered_at]
    orders = [(max(at, person.login_at), o) for at, o in orders if _covers(o, person, at, 0)]
    right |= {("revoked", at) for at, _ in orders}
    if broken:
        if (
            ending["held"] or cause == "closed"
        ):  # a close that could not be sent before the absolute limit comes after it
            right.add(("absolute", absolute))
        if person.closed_at is not None and person.closed_at >= due:
            right.add(("closed", person.closed_at))
    came = ending["due_at"] - EPOCH_MS - plan.skews[plan.leaders["activity"][plan.home(person)]]
    if ending["cause"] == "revoked":
        return  # by which order, and that one covers it, is checked; its instant is of another topic
    assert any(ending["cause"] == cause and -EXACT_MS <= came - due <= blur for cause, due in right), (
        f"truth: {person.session} ended as {ending['cause']} due at {came}, truly {sorted(right)}"
    )
