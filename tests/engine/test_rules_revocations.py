"""DESIGN.md section 3, "A revocation", and the forms of `lapse.revocations`, sentence by sentence."""

from __future__ import annotations

from typing import Any

import pytest

from lapse.schemas import Cause

from tests.engine.records import (
    Partition,
    at,
    closed,
    default_policy,
    elevated,
    everyone_revoked,
    ref,
    refreshed,
    revocation_ordered,
    started,
    touched,
)

IDLE, ABSOLUTE, GRACE = 10_000, 60_000, 250
LIFE = 30_000
SCOPES: dict[str, dict[str, Any]] = {
    "subject": {"subject": "u-1", "tenant": "acme"},
    "tenant": {"tenant": "acme"},
    "everyone": {"everyone": True},
}


def short(**changes: Any) -> Partition:
    """Return a partition whose sessions idle out after 10 s and end after 60 s."""
    return Partition(default_policy(IDLE, ABSOLUTE), **changes)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_revocation_ends_the_sessions_that_started_at_or_before_at_later_logins_pass(scope: str) -> None:
    """A revocation of a subject, tenant or everyone ends the sessions that started at or before `at`; later logins
    pass."""
    p = short()
    p.add(1000, started("before", tenant="acme", age_ms=1))
    p.add(1000, started("at", tenant="acme"))
    p.add(1001, started("after", tenant="acme"))
    p.add(1500, revocation_ordered(1000, **SCOPES[scope]))
    assert sorted(e.session for e in p.endings) == [ref("at"), ref("before")]
    assert {(e.cause, e.due_at, e.decided_at, e.revocation) for e in p.endings} == {
        ("revoked", at(1000), at(1500), "r-1")
    }
    assert p.is_live("after")


def test_the_narrowest_field_is_the_target() -> None:
    """The narrowest field is the target, the wider ones place it."""
    p = short()
    p.add(0, started("a", tenant="acme", subject="u-1"))
    p.add(0, started("b", tenant="acme", subject="u-1"))
    p.add(0, started("c", tenant="acme", subject="u-2"))
    p.add(0, started("d", subject="u-1"))
    p.add(0, started("e", tenant="other", subject="u-1"))
    p.add(10, revocation_ordered(5, session="a", subject="u-1", tenant="acme"))
    assert [e.session for e in p.endings] == [ref("a")]
    p.add(10, revocation_ordered(5, "r-2", subject="u-1", tenant="acme"))
    assert [e.session for e in p.endings[1:]] == [ref("b")]
    p.add(10, revocation_ordered(5, "r-3", tenant="acme"))
    assert [e.session for e in p.endings[2:]] == [ref("c")]
    p.add(10, revocation_ordered(5, "r-4", subject="u-1"))  # without a tenant: a tenant of its own
    assert [e.session for e in p.endings[3:]] == [ref("d")]
    p.add(10, everyone_revoked(5, "r-5"))
    assert [e.session for e in p.endings[4:]] == [ref("e")]


def test_everyone_with_another_field_is_refused() -> None:
    """Everyone with another: refused."""
    p = short()
    p.add(0, started())
    assert p.add(10, revocation_ordered(5, everyone=True, tenant="acme")).dead_letters
    assert p.add(10, revocation_ordered(5)).dead_letters  # and so is an order for nobody
    assert p.is_live()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("stamp", "kept"), [(1000 + LIFE - 1, True), (1000 + LIFE, False)])
def test_it_is_kept_as_a_cutoff_for_the_longest_session_life(scope: str, stamp: int, kept: bool) -> None:
    """It is kept as a cutoff for the longest session life, so that what arrives late ends as revoked at once, with a
    record."""
    p = short(session_life_max_ms=LIFE)
    p.add(1500, revocation_ordered(1000, **SCOPES[scope]))
    p.tick_until(stamp - 1)
    p.add(stamp, started(tenant="acme", age_ms=stamp - 900))
    if kept:
        assert (p.ending.cause, p.ending.due_at, p.ending.revocation) == ("revoked", at(1000), "r-1")
    else:
        assert p.is_live()


@pytest.mark.parametrize(("started_at", "passes"), [(1000, False), (1001, True)])
def test_what_arrives_late_ends_as_revoked_at_once(started_at: int, passes: bool) -> None:
    """What arrives late (a start, a touch, a session first seen now) ends as revoked at once, with a record."""
    p = short()
    p.add(1000, revocation_ordered(1000, subject="u-1"))
    effects = p.add(3000, started(age_ms=3000 - started_at))
    assert p.is_live() == passes
    assert len(effects.endings) == (not passes)
    if not passes:
        (ending,) = effects.endings
        assert (ending.started_at, ending.due_at, ending.decided_at) == (at(started_at), at(1000), at(3000))
        assert ending.evidence.offset == 2


def test_a_corrected_start_under_a_cutoff_ends_as_revoked_at_once() -> None:
    """What arrives late (a start ...) ends as revoked at once, with a record."""
    p = short()
    p.add(1000, revocation_ordered(1000, subject="u-1"))
    p.add(3000, touched(session_age_ms=0))
    assert p.is_live()
    (ending,) = p.add(3100, started(age_ms=2100)).endings
    assert (ending.cause, ending.started_at) == (Cause.REVOKED, at(1000))


def test_of_several_cutoffs_the_earliest_is_named() -> None:
    """Revoked: the order's `at`. (Of several that cover a session, the smallest `at`, then the smallest id.)"""
    p = short()
    p.add(1000, revocation_ordered(900, "r-b", tenant="acme"))
    p.add(1000, revocation_ordered(800, "r-d", subject="u-1", tenant="acme"))
    p.add(1000, revocation_ordered(800, "r-c", everyone=True))
    (ending,) = p.add(2000, started(tenant="acme", age_ms=1500)).endings
    assert (ending.revocation, ending.due_at) == ("r-c", at(800))


def test_only_a_cutoff_that_covers_the_start_counts() -> None:
    """Ends the sessions that started at or before `at`."""
    p = short()
    p.add(1000, revocation_ordered(500, "r-a", everyone=True))
    p.add(1000, revocation_ordered(900, "r-b", everyone=True))
    (ending,) = p.add(2000, started(age_ms=1200)).endings
    assert (ending.revocation, ending.due_at) == ("r-b", at(900))


def test_of_one_id_the_earliest_at_counts() -> None:
    """The earliest `at` of an id."""
    p = short()
    p.add(1000, revocation_ordered(900, subject="u-1"))
    p.add(2000, started("later", age_ms=500))
    p.add(2100, revocation_ordered(2000, subject="u-1"))  # a repeated copy, with a later at
    assert p.is_live("later")
    p.add(2200, revocation_ordered(400, subject="u-1"))  # and one with an earlier at
    p.add(2300, started("between", age_ms=2300 - 700))
    assert p.is_live("between")
    p.add(2300, started("before", age_ms=2300 - 400))
    assert (p.ending.session, p.ending.due_at) == (ref("before"), at(400))


def test_an_earlier_at_never_un_ends_anything() -> None:
    """The earliest `at` of an id (endings stand)."""
    p = short()
    p.add(500, started())
    p.add(1000, revocation_ordered(900, subject="u-1"))
    p.add(1100, revocation_ordered(100, subject="u-1"))
    p.add(1200, touched())
    assert not p.is_live()
    assert len(p.endings) == 1


def test_a_session_is_revoked_whenever_it_started() -> None:
    """`session`: end one, whatever its start."""
    p = short()
    p.add(5000, started())
    (ending,) = p.add(5100, revocation_ordered(100, session="s")).endings
    assert (ending.cause, ending.due_at, ending.started_at) == (Cause.REVOKED, at(100), at(5000))


@pytest.mark.parametrize("make", [started, touched, elevated])
@pytest.mark.parametrize(("stamp", "kept"), [(1000 + LIFE - 1, True), (1000 + LIFE, False)])
def test_a_session_revoked_before_it_is_seen_is_remembered_likewise(make: Any, stamp: int, kept: bool) -> None:
    """A session revoked before it is seen is remembered likewise."""
    p = short(session_life_max_ms=LIFE)
    assert p.add(1500, revocation_ordered(1000, session="s")).endings == []
    p.tick_until(stamp - 1)
    p.add(stamp, make())
    assert p.is_live() != kept
    if kept:
        assert (p.ending.cause, p.ending.due_at, p.ending.revocation) == (Cause.REVOKED, at(1000), "r-1")
        assert p.ending.decided_at == at(stamp)


def test_a_session_revoked_before_it_is_seen_ends_with_one_record_and_no_violation() -> None:
    """A session revoked before it is seen is remembered likewise: ends as revoked at once, with a record."""
    p = short()
    p.add(1000, revocation_ordered(1000, session="s"))
    p.add(9000, refreshed())
    p.add(9000, closed())
    assert (p.endings, p.violations) == ([], [])
    p.add(9000, touched())
    p.add(9000, started())
    p.add(9000, touched())
    assert p.ending.decided_at == at(9000)
    assert p.violations == []


def test_a_touch_of_a_session_revoked_before_it_is_seen_is_ignored_where_unknown_ones_are() -> None:
    """Or ignored and counted (`reject`); a start ends as revoked at once, with a record."""
    p = short(adopt_unknown=False)
    p.add(1000, revocation_ordered(1000, session="s"))
    assert p.add(1100, touched()).endings == []
    assert len(p.add(1100, started()).endings) == 1


def test_an_order_for_an_ended_session_changes_nothing() -> None:
    """A session ends once."""
    p = short(ended_memory_ms=20_000)
    p.add(0, started())
    p.add(10, closed())
    p.add(20, revocation_ordered(15, session="s"))
    p.tick_until(20_010)
    p.add(20_010, started())
    assert len(p.endings) == 1
    assert p.is_live()


def test_a_forgotten_cutoff_that_comes_back_in_the_state_is_forgotten_again() -> None:
    """No meaning rests on a tombstone: a compaction that loses one must not stop the partition."""
    p = short(session_life_max_ms=LIFE)
    p.add(0, everyone_revoked(0))
    state = [record for record in p.engine.cut().records if record[0][:1] == b"r"]
    p.tick_until(LIFE + 1000)
    engine = p.restored([*state, *p.engine.cut().records])
    assert len(engine.sessions.cutoffs) == 0
    latest = dict(p.engine.cut().records) | dict(state)
    engine = p.restored(latest.items())
    engine.apply([p.log.add(LIFE + 1500, started(age_ms=LIFE + 1200)), p.log.add(LIFE + 2500, touched())])
    assert len(engine.sessions.cutoffs) == 0
