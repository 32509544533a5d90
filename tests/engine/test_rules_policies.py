"""DESIGN.md section 3, "Policies", and section 5's rule of the strictest, sentence by sentence."""

from __future__ import annotations

from typing import Any

import pytest

from lapse.schemas import AGE_MAX_MS as AGE_MAX
from lapse.schemas import Cause

from tests.engine.records import Partition, at, default_policy, policy_adopted, ref, started, tick, touched

GRACE = 250


def idle_of(p: Partition, **fields: Any) -> tuple[str, int | None, int | None]:
    """Return (policy, version, idle_ms) that a session with these fields ends by."""
    p.add(p.now, started("asked", **fields))
    (ending,) = p.add(
        p.now,
        {
            "type": "session.closed",
            "session": ref("asked"),
            "subject": "u-1",
            "service": "web",
            "age_ms": 0,
            **({"tenant": fields["tenant"]} if "tenant" in fields else {}),
        },
    ).endings
    return ending.policy, ending.policy_version, ending.idle_ms


def test_default_always_exists() -> None:
    """`default` always exists (30 min idle, 8 h absolute until set) and is used without a name."""
    p = Partition(gap_ms=10**9)
    p.add(0, started("a"))
    p.add(1_800_000 + GRACE - 1, b"")
    assert p.is_live("a")
    p.add(1_800_000 + GRACE, b"")
    assert (p.ending.cause, p.ending.policy, p.ending.policy_version) == ("idle", "default", None)
    assert (p.ending.idle_ms, p.ending.absolute_ms) == (1_800_000, 28_800_000)


def test_the_ending_says_the_version_of_the_policy() -> None:
    """The ending's policy is the named one, else the first match by name; version null: built in."""
    assert idle_of(Partition(default_policy(5000, version=12))) == ("default", 12, 5000)
    assert idle_of(Partition()) == ("default", None, 1_800_000)


def test_default_is_used_and_counted_for_an_unknown_name() -> None:
    """And, counted, for an unknown one (the ending then says `default`)."""
    p = Partition(default_policy(5000))
    before = dict(p.engine.counters)
    assert idle_of(p, policy="no such") == ("default", 1, 5000)
    assert any(p.engine.counters[name] > before.get(name, 0) and "polic" in name for name in p.engine.counters)


def test_policies_are_chosen_by_name() -> None:
    """Policies are chosen by name on `session.started`."""
    p = Partition(default_policy(5000), policy_adopted("workforce", 3, idle_ms=9000))
    assert idle_of(p, policy="workforce") == ("workforce", 3, 9000)


@pytest.mark.parametrize(
    ("match", "fits"),
    [
        ({"tenant": ["acme", "other"]}, True),
        ({"tenant": ["other"]}, False),
        ({"service": ["web"]}, True),
        ({"service": ["billing"]}, False),
        ({"attributes": {"role": ["admin", "root"]}}, True),
        ({"attributes": {"role": ["guest"]}}, False),
        ({"attributes": {"missing": ["admin"]}}, False),
        ({"tenant": ["acme"], "service": ["web"], "attributes": {"role": ["admin"]}}, True),
        ({"tenant": ["acme"], "service": ["web"], "attributes": {"role": ["guest"]}}, False),
        ({"tenant": ["acme"], "service": ["billing"]}, False),
        ({"attributes": {"role": ["admin"], "team": ["x"]}}, False),
        ({"tenant": []}, False),
        ({}, False),
        (None, False),
    ],
)
def test_policies_are_chosen_by_rules_over_tenant_service_and_attributes(match: Any, fits: bool) -> None:
    """And by rules over tenant, service and attributes; match null: by name only."""
    p = Partition(default_policy(5000), policy_adopted("ruled", 2, idle_ms=700, match=match))
    chosen = idle_of(p, tenant="acme", attributes={"role": "admin", "floor": "3"})
    assert chosen == (("ruled", 2, 700) if fits else ("default", 1, 5000))


def test_a_session_without_a_tenant_matches_no_tenant() -> None:
    """By rules over tenant; a missing tenant is a tenant of its own."""
    p = Partition(default_policy(5000), policy_adopted("ruled", 2, idle_ms=700, match={"tenant": ["acme"]}))
    assert idle_of(p) == ("default", 1, 5000)


def test_of_all_that_match_the_strictest_value_of_each_limit_wins() -> None:
    """Of all that match, the strictest value of each limit wins."""
    p = Partition(
        default_policy(100, 100),  # not chosen: others match
        policy_adopted("b", 2, idle_ms=9000, absolute_ms=30_000, match={"service": ["web"]}),
        policy_adopted("a", 3, idle_ms=12_000, absolute_ms=20_000, match={"tenant": ["acme"]}),
        policy_adopted("c", 4, idle_ms=1, match={"tenant": ["other"]}),
    )
    p.add(0, started(tenant="acme"))
    p.tick_until(9000 + GRACE)
    assert (p.ending.idle_ms, p.ending.absolute_ms) == (9000, 20_000)
    assert (p.ending.policy, p.ending.policy_version) == ("a", 3)


def test_the_named_policy_and_all_that_match_join() -> None:
    """Policies are chosen by name and by rules; of all that match, the strictest value of each limit wins. The ending's
    policy is the named one."""
    p = Partition(
        default_policy(100, 100),
        policy_adopted("z", 2, idle_ms=9000, absolute_ms=None),
        policy_adopted("a", 3, idle_ms=12_000, absolute_ms=20_000, match={"service": ["web"]}),
    )
    p.add(0, started(policy="z"))
    p.tick_until(9000 + GRACE)
    assert (p.ending.policy, p.ending.idle_ms, p.ending.absolute_ms) == ("z", 9000, 20_000)


def test_no_limit_yields_to_any_limit() -> None:
    """null = no limit."""
    p = Partition(
        policy_adopted("none", 2, idle_ms=None, absolute_ms=None),
        policy_adopted("some", 3, idle_ms=None, absolute_ms=20_000, match={"service": ["web"]}),
    )
    p.add(0, started(policy="none"))
    p.tick_until(20_000)
    assert (p.ending.cause, p.ending.idle_ms, p.ending.policy) == (Cause.ABSOLUTE, None, "none")


def test_a_change_applies_to_live_sessions_from_its_policy_adopted_on() -> None:
    """A change applies to live sessions from its `policy.adopted` on: due instants are derived anew."""
    p = Partition(default_policy(10_000, 60_000))
    p.add(0, started())
    p.tick_until(5000)
    p.add(5000, default_policy(20_000, 60_000, version=2))
    p.tick_until(20_000 + GRACE)
    assert (p.ending.due_at, p.ending.idle_ms, p.ending.policy_version) == (at(20_000), 20_000, 2)


def test_due_instants_are_derived_anew_also_for_those_in_their_grace() -> None:
    """Due instants are derived anew, also for those in their grace."""
    p = Partition(default_policy(10_000, 60_000))
    p.add(0, started())
    p.tick_until(10_100)
    p.add(10_100, default_policy(11_000, 60_000, version=2))
    p.tick_until(10_600)
    assert p.is_live()
    p.add(10_700, touched())
    assert p.last_seen() == 10_700


def test_a_shorter_one_may_put_due_before_the_change() -> None:
    """A shorter one may put due before the change."""
    p = Partition(default_policy(10_000, 60_000))
    p.add(0, started())
    p.tick_until(8000)
    p.add(8000, default_policy(10_000, 3000, version=2))
    p.tick(8001)
    assert (p.ending.cause, p.ending.due_at, p.ending.decided_at) == (Cause.ABSOLUTE, at(3000), at(8001))


def test_a_policy_that_comes_later_is_used_by_sessions_that_named_it() -> None:
    """A change applies to live sessions from its `policy.adopted` on."""
    p = Partition(default_policy(10_000, 60_000))
    p.add(0, started(policy="workforce"))
    p.add(10, policy_adopted("workforce", 2, idle_ms=4000))
    p.tick_until(4000 + GRACE)
    assert (p.ending.policy, p.ending.policy_version, p.ending.idle_ms) == ("workforce", 2, 4000)


def test_a_rule_that_comes_later_is_used_by_live_sessions() -> None:
    """A change applies to live sessions from its `policy.adopted` on."""
    p = Partition(default_policy(10_000, 60_000))
    p.add(0, started("a", tenant="acme"))
    p.add(0, started("b"))
    p.add(10, policy_adopted("strict", 2, idle_ms=4000, match={"tenant": ["acme"]}))
    p.tick_until(4000 + GRACE)
    assert (p.ending.session, p.ending.policy) == (ref("a"), "strict")
    p.add(p.now, policy_adopted("strict", 3, idle_ms=4000))  # by name only from now on
    p.add(p.now, started("c", tenant="acme"))
    p.tick_until(p.now + 4000 + GRACE)
    assert p.is_live("c")


def test_the_strictest_of_hold_max_warn_before_and_token_life() -> None:
    """The strictest value of each limit wins."""
    rule = {"service": ["web"]}
    p = Partition(
        policy_adopted("n", 2, idle_ms=10_000, hold_max_ms=900, warn_before_ms=3000, token_life_ms=7000),
        policy_adopted("m", 3, hold_max_ms=1500, warn_before_ms=2000, token_life_ms=4000, match=rule),
    )
    p.add(0, started(policy="n"))
    p.add(0, touched(hold_ms=5000))
    assert p.last_seen() == 900
    p.tick_until(900 + 10_000 + GRACE)
    assert [w.in_ms for w in p.warnings] == [2000 - 100]
    assert p.ending.deny_until == p.ending.decided_at + 4000


HOUR = 3_600_000


def _long(absolute_ms: int | None, version: int = 1) -> Any:
    return policy_adopted("long", version, idle_ms=None, absolute_ms=absolute_ms)


@pytest.mark.parametrize("age_ms", [HOUR // 2, 2 * HOUR - 10, 5 * HOUR])
def test_a_limit_that_was_shortened_leaves_a_denial_for_as_long_as_old_tokens_may_live(age_ms: int) -> None:
    """By the new limit the denial would end at once, or hours before the tokens that were made for the old one."""
    p = Partition(_long(8 * HOUR))
    p.add(0, started(policy="long"))
    p.add(age_ms, _long(HOUR, 2))
    p.add(age_ms + 1, started("new", policy="long"))
    p.tick(age_ms + 2)
    p.tick(age_ms + HOUR + 2)
    denied = {ending.session: ending.deny_until for ending in p.endings}
    assert denied[ref("s")] == at(8 * HOUR + AGE_MAX)
    assert denied[ref("new")] == at(age_ms + 1 + HOUR + AGE_MAX), "who logs in afterwards has tokens by the new limit"


def test_a_limit_where_there_was_none_leaves_a_denial_for_the_life_of_a_token() -> None:
    p = Partition(_long(None))
    p.add(0, started(policy="long", token_life_ms=3 * HOUR))
    p.add(HOUR, _long(HOUR, 2))
    p.tick(HOUR + 1)
    assert p.ending.deny_until == p.ending.decided_at + 3 * HOUR


def test_what_was_shortened_is_in_the_checkpoint() -> None:
    p = Partition(_long(8 * HOUR))
    p.add(0, started(policy="long"))
    p.add(HOUR // 2, _long(HOUR, 2))
    engine = p.restored(p.engine.cut().records)
    (ending,) = engine.apply([p.log.add(HOUR + 1, tick(HOUR + 1))]).endings
    assert ending.deny_until == at(8 * HOUR + AGE_MAX)


def test_an_ending_long_after_its_due_leaves_a_denial_that_is_still_to_come() -> None:
    """`deny_until = started_at + absolute_ms + age_max_ms`. (Past already: as without a limit.)"""
    p = Partition(_long(8 * HOUR))
    p.add(0, started(policy="long"))
    p.tick(5 * 24 * HOUR)
    assert p.ending.due_at == at(8 * HOUR)
    assert p.ending.deny_until == p.ending.decided_at + 24 * HOUR
