"""DESIGN.md section 3, where records belong: partitions, forwarding, packed records, sentence by sentence.

Partition 0 of 2. A record that belongs to the other is forwarded to it; one that was forwarded to here is applied by
the stamp it had there.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from lapse.pipeline.engine import meanings
from lapse.schemas import Cause, partition_of

from tests.engine.records import (
    Partition,
    at,
    closed,
    default_policy,
    elevated,
    entry,
    packed,
    ref,
    refreshed,
    revocation_ordered,
    started,
    subject_of,
    touched,
)

IDLE, ABSOLUTE, GRACE = 10_000, 60_000, 250
HERE, THERE = subject_of(0, 2), subject_of(1, 2)


def two() -> Partition:
    """Return partition 0 of 2, with a short policy."""
    return Partition(default_policy(IDLE, ABSOLUTE), partitions=2)


def forwarded(
    record: dict[str, Any], offset: int, stamp: int, index: int | None = None, origin: int = 1
) -> dict[str, Any]:
    """Return a record as the owner of partition `origin` forwards it, `stamp` in ms after T0."""
    return record | {"forwarded": [origin, offset, index, at(stamp)]}


def test_a_subject_is_the_pair_of_tenant_and_subject() -> None:
    """A subject is the pair (tenant, subject); a missing tenant is a tenant of its own."""
    p = Partition(default_policy(IDLE, ABSOLUTE))
    p.add(0, started("a", subject="u", tenant="acme"))
    p.add(0, started("b", subject="u"))
    assert p.add(10, touched("a", subject="u")).dead_letters
    assert p.add(10, touched("b", subject="u", tenant="acme")).dead_letters
    assert p.last_seen("a") == p.last_seen("b") == 0


@pytest.mark.parametrize("make", [started, touched, refreshed, elevated, closed])
def test_a_slash_is_refused_in_tenants(make: Any) -> None:
    """`/` is refused in tenants."""
    p = two()
    assert p.add(0, make(subject=HERE, tenant="a/b")).dead_letters
    assert not p.is_live()


def test_the_key_only_places_the_subject_in_the_value_decides() -> None:
    """The key only places: the subject in the value decides."""
    p = two()
    assert p.add(0, started(subject=HERE)).forwards == []
    assert p.is_live()


@pytest.mark.parametrize("make", [started, touched, refreshed, elevated, closed])
def test_a_record_in_the_wrong_partition_is_forwarded_to_the_right_one(make: Any) -> None:
    """A record in the wrong partition for it (another partitioner, no key) is forwarded to the right one by the owner,
    with `forwarded: [partition, offset, index in a packed record, stamp]`."""
    p = two()
    effects = p.add(5000, make(subject=THERE, age_ms=40))
    (forward,) = effects.forwards
    assert forward.partition == 1
    assert forward.stamp == at(5000)
    assert forward.record["forwarded"] in ([0, 1, None, at(5000)], (0, 1, None, at(5000)))
    assert forward.record["type"] == make()["type"]
    assert forward.record["age_ms"] == 40
    assert not p.is_live()
    assert p.endings == []


def test_a_forward_carries_all_that_the_service_said() -> None:
    """A record in the wrong partition is forwarded: nothing of it is lost."""
    p = two()
    said = touched(subject=THERE, age_ms=4, since_ms=9, pause_ms=2, hold_ms=100, session_age_ms=77, device="d-9")
    (forward,) = p.add(5000, said).forwards
    assert {key: forward.record.get(key) for key in said} == said
    start = started("t", subject=THERE, policy="x", attributes={"role": "admin"}, token_life_ms=900, network="n")
    (forward,) = p.add(5000, start).forwards
    assert {key: forward.record.get(key) for key in start} == start


def test_packed_entries_are_forwarded_one_by_one() -> None:
    """Forwarded with `forwarded: [partition, offset, index in a packed record, stamp]`."""
    p = two()
    effects = p.add(
        5000,
        packed(entry("a", subject=HERE), entry("b", 300, 20, subject=THERE, age_ms=7), entry("c", subject=THERE)),
    )
    first, second = effects.forwards
    assert list(first.record["forwarded"]) == [0, 1, 1, at(5000)]
    assert list(second.record["forwarded"]) == [0, 1, 2, at(5000)]
    assert first.record["type"] == "session.touched"
    assert first.record["service"] == "web"
    assert (first.record["age_ms"], first.record["since_ms"], first.record["pause_ms"]) == (7, 300, 20)
    assert p.is_live("a")
    assert not p.is_live("b")


def test_a_forwarded_record_needs_a_mac() -> None:
    """With `forwarded` ... and a `mac`: without a valid one forwarded records are dead-lettered."""
    p = two()
    assert p.add(10, forwarded(started(subject=HERE), 5, 0), sign_it=False).dead_letters
    assert not p.is_live()


def test_a_forwarded_record_that_does_not_belong_here_is_dead_lettered() -> None:
    """Forwarded to the right one by the owner: once, never in a circle."""
    p = two()
    effects = p.add(10, forwarded(started(subject=THERE), 5, 0))
    assert effects.forwards == []
    assert len(effects.dead_letters) == 1


def test_it_is_applied_by_the_stamp_it_had() -> None:
    """It is applied, by the stamp it had, before its own record settles anything."""
    p = two()
    p.add(0, started(subject=HERE))
    p.tick_until(IDLE + GRACE - 1)
    # Written to the other partition in the grace, at 10,249; here long after it, so that its own record would settle.
    p.add(11_000, forwarded(touched(subject=HERE, age_ms=11_000 - 9999), 5, IDLE + GRACE - 1))
    assert p.is_live()
    assert p.last_seen() == 9999
    p.tick_until(9999 + IDLE + GRACE)
    assert p.ending.last_seen_at == at(9999)


@pytest.mark.parametrize(("stamp", "counts"), [(IDLE + GRACE - 1, True), (IDLE + GRACE, False)])
def test_a_forwarded_activity_is_in_time_by_the_stamp_it_had(stamp: int, counts: bool) -> None:
    """It is applied, by the stamp it had."""
    p = two()
    p.add(0, started(subject=HERE))
    p.tick_until(IDLE + GRACE - 1)
    p.add(IDLE + 400, forwarded(touched(subject=HERE, age_ms=401), 5, stamp))
    assert p.is_live() == counts


@pytest.mark.parametrize(("stamp", "counts"), [(ABSOLUTE - 1, True), (ABSOLUTE, False)])
def test_a_forwarded_activity_is_in_time_for_the_absolute_limit_by_the_stamp_it_had(stamp: int, counts: bool) -> None:
    """It is applied, by the stamp it had; for the absolute limit the grace is 0."""
    p = Partition(default_policy(None, ABSOLUTE), partitions=2)
    p.add(0, started(subject=HERE))
    p.tick_until(ABSOLUTE - 1)
    p.add(ABSOLUTE + 300, forwarded(touched(subject=HERE, age_ms=305), 5, stamp))
    assert (p.ending.cause, p.ending.due_at) == (Cause.ABSOLUTE, at(ABSOLUTE))
    assert p.ending.last_seen_at == at(ABSOLUTE - 5 if counts else 0)


def test_a_stamp_in_the_future_is_no_more_than_its_own() -> None:
    """It is applied, by the stamp it had (another partition's leader may be ahead; never past its own record)."""
    p = two()
    p.add(0, started(subject=HERE))
    p.add(2000, forwarded(touched(subject=HERE, age_ms=10), 5, 9_000_000))
    assert p.last_seen() == 1990


def test_each_origin_counts_once() -> None:
    """Each origin counts once."""
    p = two()
    p.add(0, forwarded(started("a", subject=HERE), 5, 0))
    p.add(10, forwarded(closed("a", subject=HERE), 6, 5))
    p.tick_until(3000)
    p.add(3000, forwarded(started("b", subject=HERE), 6, 5))  # the same place again
    assert not p.is_live("b")
    p.add(3000, forwarded(started("b", subject=HERE), 4, 5))  # an earlier one
    assert not p.is_live("b")
    assert p.dead_letters == []
    p.add(3000, forwarded(started("b", subject=HERE), 6, 5, origin=2))  # another partition's 6 is another origin
    assert p.is_live("b")


def test_each_entry_of_a_packed_record_is_an_origin() -> None:
    """Each origin counts once: `[partition, offset, index in a packed record, stamp]`."""
    p = two()
    p.add(0, forwarded(touched("a", subject=HERE), 5, 0, index=0))
    p.add(0, forwarded(touched("b", subject=HERE), 5, 0, index=3))
    p.add(0, forwarded(touched("c", subject=HERE), 5, 0, index=3))
    p.add(0, forwarded(touched("d", subject=HERE), 6, 0))
    assert sorted(p.oracle.live) == [ref("a"), ref("b"), ref("d")]


@pytest.mark.parametrize(
    "bad",
    [
        "not a list",
        [],
        [ref("x"), "u-1", None],
        [ref("x"), "u-1", None, "0"],
        [ref("x"), "u-1", None, 1.5],
        [ref("x"), "u-1", None, True],
        [ref("x"), "u-1", None, 0, "1"],
        [ref("x"), "u-1", None, 0, 1, 2, 3],
        [ref("x"), None, None, 0],
        [ref("x"), "", None, 0],
        [ref("x"), "u" * 257, None, 0],
        [ref("x"), "u-1", "a/b", 0],
        ["", "u-1", None, 0],
        [7, "u-1", None, 0],
        [ref("x"), "u-1", None, 1 << 63],
        None,
    ],
)
def test_a_bad_entry_is_dead_lettered_alone(bad: Any) -> None:
    """A bad entry is dead-lettered alone."""
    p = Partition(default_policy(IDLE, ABSOLUTE))
    effects = p.add(0, packed(entry("first"), bad, entry("last")))
    assert [(letter.offset, letter.entry) for letter in effects.dead_letters] == [(1, 1)]
    assert sorted(p.oracle.live) == [ref("first"), ref("last")]


@pytest.mark.parametrize(("count", "refused"), [(500, False), (501, True)])
def test_a_packed_record_of_more_than_500_is_refused_whole(count: int, refused: bool) -> None:
    """A packed record of more than 500 is refused whole."""
    p = Partition(default_policy(IDLE, ABSOLUTE))
    effects = p.add(0, packed(*[entry(f"s{n}") for n in range(count)]))
    assert p.engine.live_sessions == (0 if refused else count)
    assert [letter.entry for letter in effects.dead_letters] == ([None] if refused else [])


def test_an_unknown_session_of_a_packed_record_is_adopted_with_its_service() -> None:
    """packed: [session, subject, tenant or null, age_ms, since_ms?, pause_ms?]; used for adoption and routing."""
    p = Partition(default_policy(IDLE, ABSOLUTE))
    p.add(0, packed(entry("a", tenant="acme", subject="u-5"), service="billing"))
    p.tick_until(IDLE + GRACE)
    assert (p.ending.subject, p.ending.tenant) == ("u-5", "acme")


def test_a_reference_belongs_to_one_subject() -> None:
    """A reference is one login: of another subject in the same partition it is dead-lettered and changes nothing."""
    p = Partition(default_policy(IDLE, ABSOLUTE))
    p.add(0, started(subject="u-1"))
    for make in (started, touched, refreshed, elevated, closed):
        effects = p.add(100, make(subject="u-2"))
        assert len(effects.dead_letters) == 1, make
    assert [x.entry for x in p.add(100, packed(entry(subject="u-1"), entry(subject="u-2"))).dead_letters] == [1]
    assert p.is_live()
    assert p.last_seen() == 100


def test_partition_of_is_what_places_a_tenants_subject() -> None:
    """The key of activity and revocations is `tenant/subject` (or `subject`)."""
    subject = next(
        f"u-{n}" for n in range(1000) if partition_of(f"u-{n}", None, 2) == 1 and partition_of(f"u-{n}", "acme", 2) == 0
    )
    p = two()
    assert p.add(0, started("a", subject=subject)).forwards
    assert not p.add(0, started("b", subject=subject, tenant="acme")).forwards
    assert p.is_live("b")


def test_what_a_forwarded_record_makes_due_is_settled_by_itself() -> None:
    """It is applied, by the stamp it had, before its own record settles anything."""
    p = two()
    p.tick_until(20_000)
    (ending,) = p.add(20_000, forwarded(started(subject=HERE, age_ms=15_000), 5, 5001)).endings
    assert (ending.cause, ending.due_at, ending.decided_at) == (Cause.IDLE, at(15_000), at(20_000))


@pytest.mark.parametrize(
    ("stamp", "cause", "due"), [(ABSOLUTE - 1, "closed", ABSOLUTE - 10), (ABSOLUTE, "absolute", ABSOLUTE)]
)
def test_a_forwarded_close_is_in_time_by_the_stamp_it_had(stamp: int, cause: str, due: int) -> None:
    """It is applied, by the stamp it had; for the absolute limit the grace is 0: nothing can move it."""
    p = Partition(default_policy(None, ABSOLUTE), partitions=2)
    p.add(0, started(subject=HERE))
    p.tick_until(ABSOLUTE - 1)
    p.add(ABSOLUTE + 300, forwarded(closed(subject=HERE, age_ms=310), 5, stamp))
    assert (p.ending.cause, p.ending.due_at) == (cause, at(due))


def test_an_activity_of_an_ended_session_is_forwarded_if_its_subject_belongs_elsewhere() -> None:
    """The subject in the value decides."""
    p = two()
    p.add(0, started(subject=HERE))
    p.add(0, closed(subject=HERE))
    effects = p.add(5000, touched(subject=THERE))
    assert len(effects.forwards) == 1
    assert effects.violations == []


def test_an_activity_of_a_revoked_session_is_forwarded_if_its_subject_belongs_elsewhere() -> None:
    """A target without a subject is written once to every partition: the session ends in the one that it belongs to."""
    p = two()
    p.add(0, revocation_ordered(0, session="s"))
    effects = p.add(10, touched(subject=THERE))
    assert len(effects.forwards) == 1
    assert effects.endings == []
    assert len(p.add(20, touched(subject=HERE)).endings) == 1


def test_what_only_workers_write_is_passed_over_in_a_packed_record() -> None:
    """Like any field that a packed record does not have: its entries are forwarded all the same."""
    p = two()
    said = packed(entry("a", subject=THERE), entry("b", subject=HERE)) | {"forwarded": [1, 7, None, at(0)]}
    effects = p.add(5000, said)
    assert [one.record["session"] for one in effects.forwards] == [ref("a")]
    assert effects.dead_letters == []
    assert p.last_seen("b") == 5000


def test_a_packed_record_is_read_once_however_many_entries_are_misplaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a few records of 500 entries would hold up a worker's loop for seconds."""
    reads = 0

    def loads(value: bytes) -> Any:
        nonlocal reads
        reads += 1
        return orjson.loads(value)

    p = two()
    monkeypatch.setattr(meanings, "orjson", SimpleNamespace(loads=loads))
    entries = [entry(f"s-{n}", subject=THERE, age_ms=n) for n in range(500)]
    assert len(p.add(5000, packed(*entries)).forwards) == 500
    assert reads <= 1
