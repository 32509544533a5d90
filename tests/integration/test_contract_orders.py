"""Goal: what operators order by the commands alone applies to sessions that live, and to nobody who logs in later.

Method: the real program writes policies and revocations, a real worker runs, a client of the published schemas has the
sessions. What applied when is read from the log: the copies that the worker made of the orders, and the endings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.brokers import Broker
from tests.integration._estate import GRACE_MS, PARTITIONS, Estate, estate_on, session_names
from tests.integration._raw import Stored

pytestmark = pytest.mark.broker

COPIED_WITHIN_MS = 1_000


@pytest.fixture(scope="module")
def estate(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Estate]:
    with estate_on(broker, tmp_path_factory.mktemp("orders")) as made:
        yield made


def login(estate: Estate, subject: str = "u-42", tenant: str | None = None, **more: Any) -> tuple[str, Stored]:
    """Start a session; return its reference and its start."""
    (session,) = session_names(1)
    whose = {"session": session, "subject": subject, "tenant": tenant}
    return session, estate.writer.activity({"type": "session.started", **whose, "service": "raw", "age_ms": 0, **more})


def logout(estate: Estate, session: str, subject: str = "u-42", tenant: str | None = None) -> Stored:
    whose = {"session": session, "subject": subject, "tenant": tenant}
    return estate.writer.activity({"type": "session.closed", **whose, "service": "raw", "age_ms": 0})


def set_policy(estate: Estate, name: str, *limits: str) -> int:
    """Set a policy; return its version."""
    (row,) = estate.lapse("policy", "set", name, *limits)
    version: int = row["version"]
    return version


def adoptions(estate: Estate, version: int) -> dict[int, Stored]:
    """Wait for this policy's copy in every partition; return them by partition."""

    def copies(records: list[Stored]) -> dict[int, Stored]:
        found: dict[int, Stored] = {}
        for record in records:
            if record.value is not None and b'"policy.adopted"' in record.value and record.json["version"] == version:
                found.setdefault(record.partition, record)
        return found

    return copies(estate.activity.until(lambda seen: len(copies(seen)) == PARTITIONS, f"version {version} everywhere"))


def test_a_shorter_policy_ends_those_who_live_by_it(estate: Estate) -> None:
    """Due is derived anew from the copy on: here it lies before the copy, and the next record settles it."""
    set_policy(estate, "crew", "--idle", "1h", "--absolute", "8h")
    people = [login(estate, f"u-{number}", policy="crew") for number in range(8)]
    estate.fence()  # so that all of them are older than what the idle limit will be
    assert not {session for session, _ in people} & estate.ended().keys()
    version = set_policy(estate, "crew", "--idle", "1s")
    copies = adoptions(estate, version)
    for ending, (_, start) in zip(estate.endings(*(session for session, _ in people)), people, strict=True):
        copy = copies[start.partition]
        assert (ending["cause"], ending["policy"], ending["policy_version"]) == ("idle", "crew", version)
        assert (ending["idle_ms"], ending["absolute_ms"]) == (1_000, 28_800_000)
        assert ending["due_at"] == start.stamp + 1_000
        assert copy.stamp >= ending["due_at"] + GRACE_MS
        assert ending["evidence"]["offset"] == copy.offset + 1


def test_a_shorter_absolute_limit_ends_those_who_are_busy(estate: Estate) -> None:
    set_policy(estate, "press", "--idle", "1h", "--absolute", "8h")
    session, start = login(estate, policy="press")
    version = set_policy(estate, "press", "--absolute", "2s")
    copy = adoptions(estate, version)[start.partition]
    (ending,) = estate.endings(session)
    assert (ending["cause"], ending["policy_version"]) == ("absolute", version)
    assert ending["due_at"] == start.stamp + 2_000
    assert ending["evidence"]["offset"] > copy.offset


def test_a_longer_policy_lets_them_live_on(estate: Estate) -> None:
    set_policy(estate, "night", "--idle", "5s", "--absolute", "8h")
    sessions = dict(login(estate, f"u-{number}", policy="night") for number in range(8))
    copies = adoptions(estate, set_policy(estate, "night", "--idle", "1h"))
    assert all(copies[start.partition].stamp < start.stamp + 5_000 for start in sessions.values()), "too late to tell"
    # A session that was due later than they were under the former limit has ended.
    set_policy(estate, "watch", "--idle", "5s", "--absolute", "8h")
    later = [login(estate, f"u-{number}", policy="watch") for number in range(8)]
    assert {start.partition for _, start in later} == {start.partition for start in sessions.values()}
    estate.endings(*(session for session, _ in later))
    assert not sessions.keys() & estate.ended().keys()
    for number, session in enumerate(sessions):
        logout(estate, session, f"u-{number}")
    assert {(one["cause"], one["idle_ms"]) for one in estate.endings(*sessions)} == {("closed", 3_600_000)}


def test_rules_reach_those_who_never_named_the_policy(estate: Estate) -> None:
    inside, start = login(estate, tenant="mill", policy="office", attributes={"role": "admin"})
    outside, _ = login(estate, tenant="mill", policy="office", attributes={"role": "clerk"})
    limits = ["--idle", "1s", "--absolute", "none", "--match-tenant", "mill", "--match-attribute", "role=admin"]
    set_policy(estate, "strict", *limits)
    (ending,) = estate.endings(inside)
    # The strictest of each limit counts; the ending is told under the policy that was named.
    assert (ending["cause"], ending["policy"]) == ("idle", "office")
    assert (ending["idle_ms"], ending["absolute_ms"]) == (1_000, 28_800_000)
    assert ending["due_at"] == start.stamp + 1_000
    estate.fence(start.partition)
    assert outside not in estate.ended()


def test_a_policy_is_adopted_within_a_second(estate: Estate) -> None:
    """By the log's own stamps. The best of three: a machine that stands still for a second proves nothing."""
    took = []
    for idle in ("21m", "22m", "23m"):
        version = set_policy(estate, "prompt", "--idle", idle, "--absolute", "8h")
        (row,) = estate.lapse("policy", "show", "prompt")
        assert row["version"] == version
        took.append(max(copy.stamp for copy in adoptions(estate, version).values()) - row["set_at"])
    assert min(took) < COPIED_WITHIN_MS


def test_a_session_is_revoked_wherever_it_is(estate: Estate) -> None:
    """With its subject to one partition, without to all: it ends once, its subject's other session lives on."""
    for subject in (["--subject", "u-1", "--tenant", "acme"], []):
        (revoked, start), (other, _) = (login(estate, "u-1", "acme", policy="office") for _ in range(2))
        (order,) = estate.lapse("revoke", "session", revoked, *subject, "--reason", "admin")
        assert len(order["written"]) == (1 if subject else PARTITIONS)
        (ending,) = estate.endings(revoked)
        assert (ending["cause"], ending["revocation"]) == ("revoked", order["id"])
        assert start.stamp <= ending["due_at"] <= order["ordered_at"]
        estate.fence(start.partition)
        assert other not in estate.ended()


def test_a_session_that_is_revoked_before_it_is_seen_ends_as_it_comes(estate: Estate) -> None:
    (session,) = session_names(1)
    (order,) = estate.lapse("revoke", "session", session, "--subject", "u-3", "--reason", "admin")
    estate.activity.until(lambda seen: any(order["id"].encode() in (one.value or b"") for one in seen), "the copy")
    touch = estate.writer.activity(
        {"type": "session.touched", "session": session, "subject": "u-3", "service": "raw", "age_ms": 0}
    )
    (ending,) = estate.endings(session)
    assert (ending["cause"], ending["revocation"], ending["decided_at"]) == ("revoked", order["id"], touch.stamp)


def test_who_logged_in_before_the_order_and_is_told_of_after_it_is_ended_too(estate: Estate) -> None:
    (order,) = estate.lapse("revoke", "subject", "u-8", "--reason", "admin")
    estate.activity.until(lambda seen: any(order["id"].encode() in (one.value or b"") for one in seen), "the copy")
    (late,) = session_names(1)
    whose = {"session": late, "subject": "u-8", "service": "raw", "policy": "office"}
    start = estate.writer.activity({"type": "session.started", **whose, "age_ms": 3_000_000})
    (ending,) = estate.endings(late)
    assert (ending["cause"], ending["revocation"], ending["due_at"]) == ("revoked", order["id"], order["ordered_at"])
    assert ending["decided_at"] == start.stamp


# Each order with those whom it ends and those whom it does not, as (subject, tenant). Everyone last: it ends them all.
SCOPES: dict[str, tuple[list[str], list[tuple[str, str | None]], list[tuple[str, str | None]]]] = {
    "a subject": (["subject", "u-5"], [("u-5", None)], [("u-5", "dock"), ("u-6", None)]),
    "a tenant's subject": (["subject", "u-5", "--tenant", "dock"], [("u-5", "dock")], [("u-5", None), ("u-6", "dock")]),
    "a tenant": (["tenant", "dock", "--yes"], [("u-5", "dock"), ("u-6", "dock"), ("u-7", "dock")], [("u-5", None)]),
    "everyone": (["everyone", "--yes"], [("u-5", None), ("u-5", "dock"), ("u-6", "quay"), ("u-7", "quay")], []),
}


@pytest.mark.parametrize("scope", SCOPES)
def test_an_order_ends_all_who_were_there_and_later_logins_pass(estate: Estate, scope: str) -> None:
    target, those, others = SCOPES[scope]
    ended = [login(estate, *who, policy="office") for who in those for _ in range(2)]
    spared = [login(estate, *who, policy="office")[0] for who in others]
    (order,) = estate.lapse("revoke", *target, "--reason", "incident", "--note", "drill")
    for ending, (_, start) in zip(estate.endings(*(session for session, _ in ended)), ended, strict=True):
        assert (ending["cause"], ending["revocation"]) == ("revoked", order["id"])
        assert start.stamp <= ending["due_at"] <= order["ordered_at"]
    later = [login_after(estate, order["ordered_at"], *who) for who in those]
    estate.fence()
    assert not {*spared, *later} & estate.ended().keys()
    for session, who in zip([*later, *spared], [*those, *others], strict=True):
        logout(estate, session, *who)
    assert {one["cause"] for one in estate.endings(*later, *spared)} == {"closed"}


def login_after(estate: Estate, at: int, subject: str, tenant: str | None) -> str:
    """Log in once the log's clock is past this instant; return the session."""
    while True:
        session, start = login(estate, subject, tenant, policy="office")
        if start.stamp > at:
            return session


def test_every_ending_stands_the_audit(estate: Estate) -> None:
    estate.audit()
    assert estate.read("dead-letters").to_end() == []
