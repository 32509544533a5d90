"""DESIGN.md section 3: "A reference is one login", "Due of the other causes", "Unknown sessions", "Violations" and
warnings, sentence by sentence."""

from __future__ import annotations

from typing import Any

import pytest

from lapse.schemas import Cause, ending_id

from tests.engine.records import (
    Partition,
    at,
    closed,
    default_policy,
    elevated,
    entry,
    everyone_revoked,
    packed,
    policy_adopted,
    ref,
    refreshed,
    revocation_ordered,
    started,
    tick,
    touched,
)

IDLE, ABSOLUTE, GRACE = 10_000, 60_000, 250
MEMORY = 20_000
AGE_MAX = 3_600_000


def short(**changes: Any) -> Partition:
    """Return a partition whose sessions idle out after 10 s and end after 60 s."""
    return Partition(default_policy(IDLE, ABSOLUTE), **changes)


# A reference is one login.


def test_the_first_started_gives_its_start_a_repeated_one_only_moves_last_seen() -> None:
    """The first `session.started` gives its start, a repeated one only moves `last_seen`."""
    p = Partition(default_policy(IDLE, ABSOLUTE), policy_adopted("long", 2, idle_ms=40_000))
    p.add(0, started())
    p.add(5000, started(policy="long", age_ms=500))
    p.tick_until(4500 + IDLE + GRACE)
    assert (p.ending.started_at, p.ending.last_seen_at) == (at(0), at(4500))
    assert (p.ending.policy, p.ending.idle_ms) == ("default", IDLE)


def test_a_repeated_started_must_be_in_time_like_a_touch() -> None:
    """A repeated one only moves `last_seen`. (An activity counts if its instant is before due.)"""
    p = short()
    p.add(0, started())
    p.tick_until(IDLE + 100)
    p.add(IDLE + 100, started(age_ms=50))
    assert p.last_seen() == 0


def test_a_session_ends_once() -> None:
    """A session ends once."""
    p = short()
    p.add(0, started())
    p.add(10, closed())
    for make in (closed, started, touched, refreshed, elevated, closed):
        p.add(20, make())
    p.add(30, revocation_ordered(25, session="s"))
    p.add(30, everyone_revoked(25, "r-2"))
    p.tick_until(30_000)
    assert len(p.endings) == 1


def test_the_endings_id_is_derived_from_the_reference() -> None:
    """The ending's id is derived from the reference."""
    p = short()
    p.add(0, started())
    p.add(10, closed())
    assert p.ending.id == ending_id(ref("s"))


@pytest.mark.parametrize(("stamp", "remembered"), [(MEMORY - 1, True), (MEMORY, False)])
def test_it_is_remembered_for_ended_memory_ms(stamp: int, remembered: bool) -> None:
    """It is remembered for `ended_memory_ms` (1 h); until then later activity changes nothing."""
    p = short(ended_memory_ms=MEMORY)
    p.add(0, started())
    p.add(0, closed())
    p.tick_until(stamp - 1)
    p.add(stamp, started())
    assert p.is_live() != remembered


@pytest.mark.parametrize("make", [started, touched, elevated, refreshed, closed])
def test_until_then_later_activity_changes_nothing(make: Any) -> None:
    """Until then later activity changes nothing and a repeated ending has the same fields."""
    p = short(ended_memory_ms=MEMORY)
    p.add(0, started())
    p.add(10, closed())
    p.tick_until(9000)
    assert p.add(9000, make(age_ms=8000)).endings == []
    p.tick_until(MEMORY - 10)
    assert not p.is_live()
    assert p.engine.live_sessions == 0


# Due of the other causes.


def test_revoked_is_due_at_the_orders_at() -> None:
    """`revoked`: the order's `at` (taken onto the log's scale, never past the copy's stamp)."""
    p = short()
    p.add(0, started())
    (ending,) = p.add(1000, revocation_ordered(900, "r-9", session="s")).endings
    assert (ending.cause, ending.due_at, ending.decided_at, ending.revocation) == ("revoked", at(900), at(1000), "r-9")
    assert not ending.held


def test_revoked_is_due_never_past_the_copys_stamp() -> None:
    """`revoked`: the order's `at` (taken onto the log's scale, never past the copy's stamp)."""
    p = short()
    p.add(0, started())
    (ending,) = p.add(1000, revocation_ordered(5_000_000, session="s")).endings
    assert ending.due_at == at(1000)


def test_closed_is_due_at_the_closes_instant() -> None:
    """`closed`: the close's instant."""
    p = short()
    p.add(0, started())
    (ending,) = p.add(1000, closed(age_ms=70)).endings
    assert (ending.cause, ending.due_at, ending.decided_at) == (Cause.CLOSED, at(930), at(1000))


@pytest.mark.parametrize("how", ["closed", "revoked", "idle"])
def test_deny_until_is_start_plus_absolute_plus_age_max(how: str) -> None:
    """`deny_until = started_at + absolute_ms + age_max_ms`."""
    p = short()
    p.add(100, started(age_ms=100))
    if how == "closed":
        p.add(200, closed())
    elif how == "revoked":
        p.add(200, revocation_ordered(200, session="s"))
    p.tick_until(IDLE + GRACE)
    assert p.ending.cause == how
    assert p.ending.deny_until == at(0 + ABSOLUTE + AGE_MAX)


@pytest.mark.parametrize(
    ("policy_life", "session_life", "expected"),
    [
        (None, None, 86_400_000),
        (900, None, 900),
        (None, 700, 700),
        (900, 700, 900),
        (700, 900, 900),
        (None, 400 * 86_400_000, 30 * 86_400_000),
    ],
)
def test_without_an_absolute_limit_deny_until_is_decided_plus_token_life(
    policy_life: int | None, session_life: int | None, expected: int
) -> None:
    """Without an absolute limit `decided_at + token_life_ms` (policy or session, default 24 h), within a life."""
    p = Partition(default_policy(IDLE, None, token_life_ms=policy_life))
    p.add(0, started(token_life_ms=session_life))
    p.tick_until(IDLE + 1000)
    assert p.ending.deny_until == p.ending.decided_at + expected


# Unknown sessions.


@pytest.mark.parametrize("make", [touched, elevated])
def test_unknown_sessions_are_adopted(make: Any) -> None:
    """Unknown sessions (a touch without a start) are adopted; only touches and elevations adopt."""
    p = short()
    p.add(1000, make(age_ms=200))
    p.tick_until(800 + IDLE + GRACE)
    assert p.ending.started_at == p.ending.last_seen_at == at(800)
    assert p.ending.policy == "default"


@pytest.mark.parametrize("make", [touched, elevated])
def test_an_adopted_sessions_start_is_instant_minus_session_age(make: Any) -> None:
    """Start = instant minus `session_age_ms` (touch or elevation)."""
    p = short()
    p.add(1000, make(age_ms=200, session_age_ms=55_000))
    p.tick_until(800 + 5000)
    assert (p.ending.cause, p.ending.started_at, p.ending.due_at) == ("absolute", at(800 - 55_000), at(5800))


def test_a_packed_touch_adopts() -> None:
    """Unknown sessions (a touch without a start) are adopted."""
    p = short()
    p.add(1000, packed(entry(age_ms=200)))
    assert p.last_seen() == 800


def test_an_adopted_sessions_policy_is_by_the_rules() -> None:
    """Policy by the rules or `default`."""
    p = short()
    p.add(0, policy_adopted("acmes", 2, idle_ms=3000, match={"tenant": ["acme"], "service": ["web"]}))
    p.add(0, touched("a", tenant="acme"))
    p.add(0, touched("b", tenant="acme", service="billing"))
    p.tick_until(20_000)
    assert [(e.session, e.policy, e.idle_ms) for e in p.endings] == [
        (ref("a"), "acmes", 3000),
        (ref("b"), "default", IDLE),
    ]


def test_a_later_started_corrects_start_and_policy() -> None:
    """A later `started` corrects start and policy."""
    p = Partition(default_policy(IDLE, ABSOLUTE), policy_adopted("brief", 2, absolute_ms=9000))
    p.add(1000, touched())
    p.add(2000, started(age_ms=1900, policy="brief"))
    p.tick_until(9100)
    assert (p.ending.cause, p.ending.started_at, p.ending.due_at, p.ending.policy) == (
        "absolute",
        at(100),
        at(9100),
        "brief",
    )
    assert p.ending.last_seen_at == at(1000)


def test_only_the_first_later_started_corrects() -> None:
    """The first `session.started` gives its start, a repeated one only moves `last_seen`."""
    p = short()
    p.add(1000, touched())
    p.add(2000, started(age_ms=1900))
    p.add(3000, started(age_ms=0))
    p.add(3001, closed())
    assert (p.ending.started_at, p.ending.last_seen_at) == (at(100), at(3000))


def test_under_a_cutoff_and_without_a_known_age_it_is_revoked() -> None:
    """Under a cutoff and without a known age it is revoked."""
    p = short()
    p.add(0, revocation_ordered(0, subject="u-1"))
    p.tick_until(5000)
    (ending,) = p.add(5000, touched()).endings
    assert (ending.cause, ending.revocation, ending.due_at) == ("revoked", "r-1", at(0))
    assert ending.started_at == at(5000)


@pytest.mark.parametrize(("session_age_ms", "passes"), [(4999, True), (5000, False), (-1, True)])
def test_with_a_known_age_it_is_revoked_if_it_started_at_or_before(session_age_ms: int, passes: bool) -> None:
    """Under a cutoff and without a known age it is revoked (with one by its start; an age below 0 is clamped)."""
    p = short()
    p.add(0, revocation_ordered(0, subject="u-1"))
    p.tick_until(5000)
    p.add(5000, touched(session_age_ms=session_age_ms))
    assert p.is_live() == passes


def test_only_touches_and_elevations_adopt() -> None:
    """Only touches and elevations adopt."""
    p = short()
    assert p.add(0, refreshed()).dead_letters == []
    assert not p.is_live()
    p.add(0, touched())
    assert p.is_live()


def test_a_close_is_remembered_as_an_ending_without_a_record() -> None:
    """A close is remembered as an ending without a record."""
    p = short(ended_memory_ms=MEMORY)
    p.add(0, closed())
    p.add(10, started())
    p.add(10, touched())
    assert not p.is_live()
    assert p.endings == []
    p.tick_until(MEMORY)
    p.add(MEMORY, started())
    assert p.is_live()


@pytest.mark.parametrize("make", [touched, elevated])
def test_or_ignored_and_counted(make: Any) -> None:
    """Or ignored and counted (`reject`)."""
    p = short(adopt_unknown=False)
    before = dict(p.engine.counters)
    p.add(0, make())
    assert not p.is_live()
    assert dict(p.engine.counters) != before
    p.add(10, started())
    assert p.is_live()


# Violations.


@pytest.mark.parametrize("make", [touched, refreshed, elevated])
@pytest.mark.parametrize(("instant", "violates"), [(3000, False), (3001, True)])
def test_a_violation_is_an_activity_more_than_violation_after_ms_after_the_ending(
    make: Any, instant: int, violates: bool
) -> None:
    """Violations: a touch, refresh or elevation whose instant is more than `violation_after_ms` (2000) after the
    ending's `decided_at` (= `ended_at`); it names the service that accepted it."""
    p = short()
    p.add(0, started())
    p.add(1000, closed(age_ms=500))
    effects = p.add(3500, make(service="legacy", age_ms=3500 - instant))
    assert len(effects.violations) == violates
    if violates:
        (violation,) = effects.violations
        assert (violation.service, violation.subject, violation.ended_at) == ("legacy", "u-1", at(1000))
        assert (violation.active_at, violation.ending) == (at(instant), ending_id(ref("s")))


@pytest.mark.parametrize("make", [started, closed])
def test_starts_and_closes_are_no_violations(make: Any) -> None:
    """Violations: a touch, refresh or elevation."""
    p = short()
    p.add(0, started())
    p.add(0, closed())
    p.tick_until(9000)
    p.add(9000, make())
    assert p.violations == []


def test_a_packed_touch_can_be_a_violation() -> None:
    """Violations: a touch; it names the service that accepted it."""
    p = short()
    p.add(0, started())
    p.add(0, closed())
    (violation,) = p.add(2001, packed(entry(), entry(), service="legacy")).violations
    assert violation.service == "legacy"


def test_a_violation_is_told_once_per_session_and_service() -> None:
    """Once per session and service."""
    p = short()
    p.add(0, started("a"))
    p.add(0, started("b"))
    p.add(0, closed("a"))
    p.add(0, closed("b"))
    p.add(2500, touched("a", service="legacy"))
    p.add(2500, touched("a", service="legacy"))
    p.add(2500, refreshed("a", service="older"))
    p.add(2500, touched("b", service="legacy"))
    assert [(v.session, v.service) for v in p.violations] == [
        (ref("a"), "legacy"),
        (ref("a"), "older"),
        (ref("b"), "legacy"),
    ]


# Warnings.


@pytest.mark.parametrize("stamp", [6999, 7000])
def test_a_session_that_is_about_to_end_is_warned_of(stamp: int) -> None:
    """`session.expiring`: sessions about to end, `warn_before_ms` before due."""
    p = Partition(default_policy(IDLE, ABSOLUTE, warn_before_ms=3000))
    p.add(0, started(tenant="acme"))
    p.tick_until(stamp)
    if stamp < 7000:
        assert p.warnings == []
        assert p.engine.next_due_at() == at(7000)
        return
    (warning,) = p.warnings
    assert (warning.session, warning.subject, warning.tenant) == (ref("s"), "u-1", "acme")
    assert (warning.cause, warning.due_at, warning.in_ms) == (Cause.IDLE, at(IDLE), 3000)


def test_a_warning_is_told_once_per_due() -> None:
    """`session.expiring`: once for each instant at which the session is due."""
    p = Partition(default_policy(IDLE, ABSOLUTE, warn_before_ms=3000))
    p.add(0, started())
    p.tick_until(9000)
    p.add(9000, touched())
    p.tick_until(9000 + IDLE + GRACE)
    assert [(w.due_at, w.in_ms) for w in p.warnings] == [(at(IDLE), 3000), (at(9000 + IDLE), 3000)]
    assert len(p.endings) == 1


def test_a_warning_says_the_cause_of_the_limit_that_comes_first() -> None:
    """`session.expiring` carries the cause."""
    p = Partition(default_policy(None, 20_000, warn_before_ms=3000))
    p.add(0, started())
    p.tick_until(18_000)
    (warning,) = p.warnings
    assert (warning.cause, warning.due_at) == (Cause.ABSOLUTE, at(20_000))


def test_nobody_is_warned_of_what_is_past() -> None:
    """`in_ms` is how long there is still time: of an end whose due has come nobody is warned."""
    p = Partition(default_policy(IDLE, ABSOLUTE, warn_before_ms=3000))
    p.add(0, started(age_ms=IDLE - 1))
    p.add(1, tick(1))
    assert p.warnings == []
    assert p.is_live()


def test_a_warning_late_in_the_window_says_the_time_that_is_left() -> None:
    """`in_ms`: due minus the stamp of the record that told it."""
    p = Partition(default_policy(IDLE, ABSOLUTE, warn_before_ms=3000))
    p.add(0, started(age_ms=9000))
    p.add(300, tick(1))
    assert [w.in_ms for w in p.warnings] == [700]


def test_a_due_that_moves_within_the_window_is_told_again() -> None:
    """`session.expiring`: once for each instant at which the session is due."""
    p = Partition(default_policy(IDLE, ABSOLUTE, warn_before_ms=8000))
    p.add(0, started())
    p.tick_until(3000)
    p.add(3100, touched(age_ms=2000))
    p.add(3100, touched(age_ms=2000))
    p.tick(3200)
    assert [(w.due_at, w.in_ms) for w in p.warnings] == [(at(IDLE), 8000), (at(1100 + IDLE), 8000)]


def test_nobody_is_warned_of_a_session_without_limits() -> None:
    """null = no limit."""
    p = Partition(default_policy(None, None, warn_before_ms=3000))
    p.add(0, started())
    p.tick_until(20_000)
    assert p.warnings == []
    assert p.engine.next_due_at() is None


# hold_ms.


@pytest.mark.parametrize(("hold_ms", "held_for"), [(4000, 4000), (5000, 5000), (9000, 5000)])
def test_hold_ms_counts_as_activity_so_long_capped_by_the_policy(hold_ms: int, held_for: int) -> None:
    """hold_ms (an upload or job counts as activity so long, capped by the policy, never past absolute)."""
    p = Partition(default_policy(IDLE, ABSOLUTE, hold_max_ms=5000))
    p.add(0, started())
    p.add(1000, touched(hold_ms=hold_ms))
    p.tick_until(1000 + held_for + IDLE + GRACE)
    assert (p.ending.cause, p.ending.due_at) == (Cause.IDLE, at(1000 + held_for + IDLE))


def test_hold_ms_never_passes_the_absolute_limit() -> None:
    """hold_ms (..., never past absolute)."""
    p = Partition(default_policy(IDLE, 20_000, hold_max_ms=None))
    p.add(0, started())
    p.add(1000, touched(hold_ms=500_000))
    p.tick_until(20_000)
    assert (p.ending.cause, p.ending.due_at) == (Cause.ABSOLUTE, at(20_000))


def test_hold_ms_of_an_adopted_session_counts_too() -> None:
    """hold_ms (an upload or job counts as activity so long)."""
    p = Partition(default_policy(IDLE, ABSOLUTE, hold_max_ms=5000))
    p.add(1000, touched(hold_ms=3000))
    assert p.last_seen() == 4000
