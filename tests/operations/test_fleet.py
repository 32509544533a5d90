"""Goal: what stands out is what operators must see, and nothing else. Method: reports go in, rows are looked at."""

from __future__ import annotations

from typing import Any

import pytest

from lapse.pipeline.operations.fleet import (
    APPLY_WITHIN_MS,
    LEAVING_MS,
    REVOCATIONS_MAX,
    SILENT_AFTER_MS,
    STALE_AFTER_MS,
    Fleet,
)
from lapse.schemas import GuardApplied, GuardStatus

NOW = 1_000_000
WITHIN = 300_000


def status(service: str = "shop", instance: str = "a", **fields: Any) -> GuardStatus:
    return GuardStatus.model_validate(
        {
            "service": service,
            "instance": instance,
            "version": "1",
            "applied": {"expiries": [9, -1], "revocations": [4, -1]},
            "stale_ms": 100,
            "entries": 1,
            "checks": 1,
            "refused": 0,
            "allowed_while_stale": 0,
            **fields,
        }
    )


def applied(revocation: str = "r", after_ms: float = 4.0, instance: str = "a") -> GuardApplied:
    return GuardApplied(service="shop", instance=instance, revocation=revocation, after_ms=after_ms, closed=2)


def kinds(fleet: Fleet, now: int = NOW) -> dict[tuple[str, str | None], list[str]]:
    return {(row.service, row.instance): [one.kind for one in row.findings] for row in fleet.rows(now, WITHIN)}


def test_a_guard_that_reports_and_is_fresh_does_not_stand_out() -> None:
    fleet = Fleet()
    fleet.status(status(), NOW - 900, (0, 0))
    fleet.activity("shop", NOW)
    assert kinds(fleet) == {("shop", "a"): []}


def test_a_service_that_publishes_without_a_guard_stands_out_beside_those_that_have_one() -> None:
    fleet = Fleet()
    fleet.status(status(), NOW, (0, 0))
    fleet.activity("shop", NOW)
    fleet.activity("legacy", NOW - 2_000)
    assert kinds(fleet) == {("legacy", None): ["unguarded"], ("shop", "a"): []}


def test_a_guard_is_silent_at_the_bound_and_forgotten_after_the_window_though_its_service_is_not() -> None:
    fleet = Fleet()
    fleet.status(status(), NOW, (0, 0))
    assert kinds(fleet, NOW + SILENT_AFTER_MS - 1) == {("shop", "a"): []}
    assert kinds(fleet, NOW + SILENT_AFTER_MS) == {("shop", "a"): ["silent"]}
    assert kinds(fleet, NOW + WITHIN + 1) == {}
    fleet.activity("shop", NOW + WITHIN)
    assert kinds(fleet, NOW + WITHIN + 1) == {("shop", None): ["unguarded"]}


@pytest.mark.parametrize(("named", "limit"), [(None, STALE_AFTER_MS), (3_000, 3_000), (60_000, 60_000)])
def test_a_stale_guard_stands_out_at_its_own_bound(named: int | None, limit: int) -> None:
    fleet = Fleet()
    fleet.status(status(stale_ms=limit - 1, stale_after_ms=named), NOW, (0, 0))
    assert kinds(fleet) == {("shop", "a"): []}
    fleet.status(status(stale_ms=limit, stale_after_ms=named), NOW, (0, 1))
    assert kinds(fleet) == {("shop", "a"): ["stale"]}


def test_of_a_stale_guard_it_is_told_what_it_does_meanwhile() -> None:
    fleet = Fleet()
    fleet.status(status(stale_ms=3_000, stale_after_ms=3_000, on_stale="deny"), NOW, (0, 0))
    (row,) = fleet.rows(NOW, WITHIN)
    assert "on_stale=deny" in row.findings[0].about
    assert "3.0 s" in row.findings[0].about


def stopping(instance: str = "a", **fields: Any) -> GuardStatus:
    return status(instance=instance, stopping=True, **fields)


def test_a_guard_that_was_told_to_stop_is_shown_so_and_leaves_soon_whatever_it_lacked() -> None:
    fleet = Fleet()
    fleet.expect({"expiries": [12, 0], "revocations": [9, 0]}, [0])
    fleet.status(stopping(stale_ms=STALE_AFTER_MS), NOW, (0, 0))
    fleet.revocation("r", NOW - APPLY_WITHIN_MS, (0, 8))
    (row,) = fleet.rows(NOW + LEAVING_MS - 1, WITHIN)
    assert (row.stopped, row.findings, row.behind) == (True, (), None)
    assert fleet.rows(NOW + LEAVING_MS, WITHIN) == []


def test_beside_a_stopped_guard_a_killed_one_stands_out() -> None:
    fleet = Fleet()
    fleet.status(status(instance="killed"), NOW, (0, 0))
    fleet.status(stopping("stopped"), NOW, (0, 1))
    fleet.status(status(instance="running"), NOW + SILENT_AFTER_MS, (0, 2))
    fleet.activity("shop", NOW + LEAVING_MS)
    assert kinds(fleet, NOW + SILENT_AFTER_MS) == {
        ("shop", "killed"): ["silent"],
        ("shop", "running"): [],
        ("shop", "stopped"): [],
    }


def test_who_starts_again_under_its_name_runs() -> None:
    fleet = Fleet()
    fleet.status(stopping(), NOW, (0, 0))
    fleet.status(status(), NOW + 1_000, (0, 1))
    fleet.activity("shop", NOW + LEAVING_MS)
    (row,) = fleet.rows(NOW + 1_000, WITHIN)
    assert not row.stopped
    assert kinds(fleet, NOW + LEAVING_MS) == {("shop", "a"): ["silent"]}


def test_a_service_that_publishes_after_its_last_guard_has_stopped_has_none() -> None:
    fleet = Fleet()
    fleet.status(stopping("a"), NOW, (0, 0))
    fleet.status(stopping("b"), NOW + 1_000, (0, 1))
    fleet.activity("shop", NOW + 1_000 + LEAVING_MS - 1)  # flushed by its publishers as they stopped
    assert kinds(fleet, NOW + 60_000) == {}
    fleet.activity("shop", NOW + 1_000 + LEAVING_MS)
    assert kinds(fleet, NOW + 60_000) == {("shop", None): ["unguarded"]}
    (row,) = fleet.rows(NOW + 60_000, WITHIN)
    assert "stopped" in row.findings[0].about


def test_a_service_that_was_shut_down_leaves_and_does_not_come_back_with_its_last_activity() -> None:
    fleet = Fleet()
    fleet.status(stopping(), NOW, (0, 0))
    fleet.activity("shop", NOW + 2_000)
    for later in range(0, WITHIN + 60_000, 500):
        assert all(found == [] for found in kinds(fleet, NOW + later).values())
    assert kinds(fleet, NOW + WITHIN + 60_000) == {}


def test_activity_of_before_the_window_says_nothing_of_now() -> None:
    fleet = Fleet()
    fleet.activity("legacy", NOW)
    assert kinds(fleet, NOW + WITHIN) == {("legacy", None): ["unguarded"]}
    assert kinds(fleet, NOW + WITHIN + 1) == {}


def test_what_a_stopped_guard_let_pass_is_told_to_the_windows_end() -> None:
    fleet = Fleet()
    fleet.status(status(), NOW, (0, 0))
    fleet.status(stopping(allowed_while_stale=2), NOW, (0, 1))
    assert kinds(fleet, NOW + WITHIN) == {("shop", "a"): ["allowed_while_stale"]}
    assert kinds(fleet, NOW + WITHIN + 1) == {}


def test_sessions_let_pass_while_stale_count_within_the_window_and_over_a_restart() -> None:
    fleet = Fleet()
    fleet.status(status(allowed_while_stale=70), NOW, (0, 0))  # long ago
    assert kinds(fleet) == {("shop", "a"): []}
    fleet.status(status(allowed_while_stale=72), NOW, (0, 1))
    fleet.status(status(allowed_while_stale=0), NOW, (0, 2))
    fleet.status(status(allowed_while_stale=3), NOW, (0, 3))
    (row,) = fleet.rows(NOW, WITHIN)
    assert row.allowed_while_stale == 5
    assert [one.kind for one in row.findings] == ["allowed_while_stale"]


def test_only_a_status_younger_than_the_ends_is_held_against_them() -> None:
    fleet = Fleet()
    fleet.status(status(), NOW, (1, 6))
    fleet.expect({"expiries": [12, 0], "revocations": [5, 0]}, [3, 7])
    assert not fleet.is_judged(NOW)
    assert kinds(fleet) == {("shop", "a"): []}
    fleet.status(status(), NOW, (1, 7))
    assert fleet.is_judged(NOW)
    (row,) = fleet.rows(NOW, WITHIN)
    assert row.behind == 2
    assert [one.kind for one in row.findings] == ["behind"]
    fleet.status(status(applied={"expiries": [11, -1], "revocations": [4, -1]}), NOW, (1, 8))
    assert kinds(fleet) == {("shop", "a"): []}


def test_who_is_silent_or_has_stopped_is_not_waited_for() -> None:
    fleet = Fleet()
    fleet.status(status(), NOW - SILENT_AFTER_MS, (0, 0))
    fleet.expect({"expiries": [12, 0]}, [1])
    assert fleet.is_judged(NOW)
    fleet.status(stopping(), NOW, (0, 0))  # it says no more
    assert fleet.is_judged(NOW)


def test_a_partition_that_a_guard_does_not_know_counts_whole_and_a_topic_it_does_not_follow_not_at_all() -> None:
    fleet = Fleet()
    fleet.expect({"expiries": [10, 0, 3], "revocations": [99, 0, 0]}, [0])
    fleet.status(status(applied={"expiries": [9, -1]}), NOW, (0, 0))
    (row,) = fleet.rows(NOW, WITHIN)
    assert row.behind == 3


@pytest.mark.parametrize("by", ["report", "offset", "offset of another partition"])
def test_a_revocation_that_is_applied_is_not_missing(by: str) -> None:
    fleet = Fleet()
    fleet.status(status(), NOW, (0, 0))
    fleet.revocation("r", NOW - APPLY_WITHIN_MS, (1, 0))
    if by == "report":
        fleet.applied(applied(), NOW)
    elif by == "offset":
        fleet.status(status(applied={"revocations": [4, 0]}), NOW, (0, 1))
    else:
        fleet.revocation("r", NOW - APPLY_WITHIN_MS, (0, 4))
    assert kinds(fleet) == {("shop", "a"): []}


def test_a_revocation_is_missing_once_there_was_time_to_apply_it() -> None:
    fleet = Fleet()
    fleet.status(status(), NOW, (0, 0))
    fleet.revocation("r", NOW - APPLY_WITHIN_MS, (0, 5))
    assert kinds(fleet, NOW - 1) == {("shop", "a"): []}
    (row,) = fleet.rows(NOW, WITHIN)
    assert [(one.kind, one.amount) for one in row.findings] == [("revocation_missing", 1)]
    assert "r" in row.findings[0].about


def test_an_applier_that_goes_by_endings_has_no_revocation_to_apply() -> None:
    fleet = Fleet("r")
    fleet.status(status("apply-redis", applied={"expiries": [9, 9]}), NOW, (0, 0))
    fleet.revocation("r", 0, (0, 5))
    assert kinds(fleet) == {("apply-redis", "a"): []}
    assert fleet.enforcement(NOW) == []


def test_one_revocation_is_answered_for_every_instance_fastest_first() -> None:
    fleet = Fleet("r")
    fleet.revocation("r", NOW - 60_000, (0, 5))
    fleet.revocation("other", NOW, (0, 6))
    fleet.status(status(instance="slow"), NOW, (0, 0))
    fleet.applied(applied(after_ms=90.5, instance="slow"), NOW)
    fleet.applied(applied(after_ms=2.5, instance="fast"), NOW)
    fleet.applied(applied("other", instance="fast"), NOW)
    fleet.status(status(instance="later", applied={"revocations": [5, -1]}), NOW, (0, 1))
    fleet.status(status(instance="hung"), NOW - 30_000, (0, 2))
    fleet.activity("legacy", NOW)
    found = [(one.instance, one.state, one.after_ms, one.silent_ms) for one in fleet.enforcement(NOW)]
    assert found == [
        ("fast", "applied", 2.5, 0),
        ("slow", "applied", 90.5, 0),
        ("later", "known", None, 0),
        ("hung", "missing", None, 30_000),
        (None, "unguarded", None, None),
    ]


def test_of_one_revocation_it_is_told_who_stopped_without_it_unless_that_was_before_it_was_ordered() -> None:
    fleet = Fleet("r")
    fleet.revocation("r", NOW, (0, 5))
    fleet.status(stopping("before"), NOW - 1, (0, 0))
    fleet.status(stopping("without"), NOW, (0, 1))
    fleet.status(stopping("with", applied={"revocations": [5, -1]}), NOW, (0, 2))
    fleet.activity("shop", NOW + LEAVING_MS)
    found = [(one.instance, one.state) for one in fleet.enforcement(NOW + LEAVING_MS)]
    assert found == [("with", "known"), ("without", "stopped"), (None, "unguarded")]


def test_what_is_kept_is_bounded() -> None:
    fleet = Fleet()
    fleet.status(status(), NOW, (0, 0))
    for number in range(REVOCATIONS_MAX + 10):
        fleet.revocation(f"r-{number}", number, (0, 100 + number))
        fleet.applied(applied(f"r-{number}"), NOW)
    assert fleet.ordered_at("r-9") is None
    assert fleet.ordered_at("r-10") == 10
    assert kinds(fleet) == {("shop", "a"): []}
