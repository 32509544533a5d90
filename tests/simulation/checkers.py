"""Was what the engine said right? Checks of a run: against the oracle, and against what truly happened.

The oracle says what the rules make of the log. The people's own acts say what the rules are for: nobody who goes on
working is logged out, whatever broke meanwhile; whoever stopped is, once, with the right cause and due. The log's
instants of acts lie up to one publishing delay after the true ones, and no person acts nearer to a limit than that.
"""

from __future__ import annotations

from lapse.schemas import SessionEnded

from tests.engine.oracle import Oracle
from tests.engine.oracle_facts import OracleEffects
from tests.engine.records import T0, assert_same, ref
from tests.simulation.world import PUBLISHING_MS, Person, World

__all__ = ["check"]

LATE_MS = 250 + 900 + PUBLISHING_MS  # the grace, the copy of an order, or a close on its way: while nothing breaks


def check(world: World) -> None:
    """Assert all of it.

    Raises:
        AssertionError: a batch differs from the oracle, or an ending from the truth.
    """
    _check_against_oracle(world)
    endings = _check_repetitions(world)
    for person in world.people:
        _check_person(world, person, endings.get(ref(person.session)))


def _check_against_oracle(world: World) -> None:
    oracle = Oracle(world.settings)
    by_offset = [oracle.apply([record]) for record in world.log.records]
    for first, count, effects in world.said:
        expected = OracleEffects()
        for one in by_offset[first : first + count]:
            expected.extend(one)
        assert_same(effects, expected, f"at offsets {first} to {first + count - 1}")


def _check_repetitions(world: World) -> dict[str, SessionEnded]:
    """Assert that a session ends once, and that what is said again after a crash is the same; return the endings."""
    endings: dict[str, SessionEnded] = {}
    for _, _, effects in world.said:
        for ending in effects.endings:
            before = endings.setdefault(ending.session, ending)
            assert before == ending, f"{ending} was said before as {before}"
    return endings


def _check_person(world: World, person: Person, ending: SessionEnded | None) -> None:
    due, cause, other = _truth(world, person)
    assert ending is not None, f"{person.session} did not end, due at {due} as {cause}"
    right = {(cause, due)}
    if other[1] <= due + PUBLISHING_MS + world.settings.grace_ms:
        right.add(other)  # which of both limits came first is within the time of publishing, or in a hold the grace
    orders = [(at, copy) for at, who, copy in world.copies if who == person.subject and person.acts[0] <= at]
    if orders and min(orders)[0] < due:
        # Where the limit had passed before the copy came, either may have been first.
        right = {("revoked", min(orders)[0])} | (right if min(orders)[1] > due else set())
    # An idle ending waits for the grace, in a hold longer; meanwhile an absolute limit, an order or a close may come.
    broken = bool(world.plan.outages or world.plan.crashes)
    waits_until = due + (world.plan.length_ms if broken else world.settings.grace_ms + PUBLISHING_MS)
    right |= {("revoked", at) for at, _ in orders if due <= at <= waits_until}
    if broken:
        if ending.held or cause == "closed":  # a close that could not be sent before the absolute limit comes after it
            right.add(("absolute", person.acts[0] + world.plan.absolute_ms))
        if person.closed_at is not None and person.closed_at >= due:
            right.add(("closed", person.closed_at))
    came = ending.due_at - T0
    assert any(ending.cause.value == cause and due <= came <= due + PUBLISHING_MS for cause, due in right), (
        f"{person.session} ended as {ending.cause} due at {came}, truly {sorted(right)}"
    )
    decided = ending.decided_at - T0
    assert decided >= came, f"{person.session} ended at {decided} before {came}"
    if not broken:
        late = decided - came
        assert late <= LATE_MS, f"{person.session} ended {late} ms after it was due"
    if ending.cause.value in ("idle", "absolute"):
        assert decided >= due, f"{person.session} ended as {ending.cause} at {decided}, but was live until {due}"


def _truth(world: World, person: Person) -> tuple[int, str, tuple[str, int]]:
    """Return when and why a session had to end, by what the person did, and the limit that was not the first."""
    plan = world.plan
    absolute = person.acts[0] + plan.absolute_ms
    last = person.acts[0]
    for act in person.acts[1:]:
        if act >= min(last + plan.idle_ms, absolute):
            break
        last = act
    (due, _, cause), (later, _, other) = sorted([(absolute, 0, "absolute"), (last + plan.idle_ms, 1, "idle")])
    if person.closed_at is not None and person.closed_at < due:
        return person.closed_at, "closed", (cause, due)
    return due, cause, (other, later)
