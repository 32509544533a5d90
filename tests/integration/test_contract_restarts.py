"""Goal: whatever a worker had in hand when it was killed or stopped, nothing is lost, shortened or counted twice.

Method: the worker is killed while records of another partitioner, packed touches, an order and a policy are under way
to where they belong, killed again while it makes up for it, then stopped; each time the clients go on writing. What is
asserted rests on what the clients wrote and on the log. (Steady traffic through many kills, compared with a
recomputation: test_processor_endings.py.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lapse.schemas import partition_of

from tests.brokers import Broker
from tests.integration._estate import PARTITIONS, Estate, estate_on, session_names
from tests.integration._raw import Stored

pytestmark = [pytest.mark.broker, pytest.mark.slow]

PEOPLE = 16
CREW = {"type": "policy", "name": "crew", "idle_ms": 3_600_000, "absolute_ms": None}
SHORTER = CREW | {"idle_ms": 2_000}


@pytest.fixture(scope="module")
def estate(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Estate]:
    directory = tmp_path_factory.mktemp("restarts")
    with estate_on(broker, directory, CREW, LAPSE_CHECKPOINT_INTERVAL_MS="500") as made:
        yield made


def about(kind: str, session: str, subject: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "session": session, "subject": subject, "service": "raw", "age_ms": 0, **more}


def people(name: str) -> dict[str, str]:
    """Return so many new sessions with their subjects, of all partitions."""
    subjects = [f"{name}-{number}" for number in range(PEOPLE)]
    assert {partition_of(subject, None, PARTITIONS) for subject in subjects} == set(range(PARTITIONS))
    return dict(zip(session_names(PEOPLE), subjects, strict=True))


def instant_of(record: Stored) -> int:
    age_ms: int = record.json["age_ms"]
    return record.stamp - age_ms


def counted(estate: Estate, *records: Stored) -> list[Stored]:
    """Return each record where it counts: itself, or its first copy in the right partition."""
    misplaced = [one for one in records if one.partition != partition_of(one.json["subject"], None, PARTITIONS)]
    copies = dict(zip(misplaced, estate.copies_of(*misplaced), strict=True))
    return [copies.get(one, one) for one in records]


def packed_touches(estate: Estate, those: dict[str, str], at: int, age_ms: int) -> Stored:
    entries = [[session, subject, None, age_ms] for session, subject in those.items()]
    record = {"type": "touches", "service": "raw", "touches": entries}
    return estate.writer.activities([record], keyed=False, partition=at)[0]


def test_nothing_is_lost_shortened_or_counted_twice(estate: Estate) -> None:
    elsewhere = estate.written_by(partitioner="consistent_random")
    stay, go, crew, late, thrown = (people(name) for name in ("stay", "go", "crew", "late", "thrown"))

    # Killed with all of it acknowledged to the clients, and little of it applied, copied or saved.
    started = dict(zip(stay, elsewhere.activities(
        about("session.started", one, who, age_ms=500, policy="office") for one, who in stay.items()
    ), strict=True))  # fmt: skip
    gone = dict(zip(go, elsewhere.activities(
        about("session.started", one, who, policy="brief") for one, who in go.items()
    ), strict=True))  # fmt: skip
    elsewhere.activities(about("session.started", one, who, policy="crew") for one, who in crew.items())
    # Older than what their copies may be late by: they were there before the order.
    elsewhere.activities(
        about("session.started", one, who, age_ms=2_000, policy="office") for one, who in thrown.items()
    )
    estate.kill()

    # The clients go on while nobody is there, and so do the operators.
    first_touch = packed_touches(estate, stay, at=0, age_ms=90)
    orders = {
        who: elsewhere.revoke({"type": "revocation", "id": f"r-{who}", "subject": who}) for who in thrown.values()
    }
    version = estate.writer.policy(SHORTER).offset
    later = dict(zip(late, elsewhere.activities(
        about("session.started", one, who, age_ms=700, policy="office") for one, who in late.items()
    ), strict=True))  # fmt: skip

    # Killed again while it makes up for that: some of what it forwards is out, and no checkpoint says so.
    before = len(forwarded(estate.activity.to_end()))
    estate.start()
    estate.activity.until(lambda seen: len(forwarded(seen)) > before, "what had been misplaced")
    estate.kill()
    last_touch = packed_touches(estate, stay, at=1, age_ms=40)
    estate.start()
    estate.at_work()
    assert estate.stop() == 0
    # In a transaction: the log ends with markers, which are no records and must not be waited for.
    closing = [about("session.closed", one, who) for one, who in (stay | late).items()]
    in_transaction = estate.written_by(transactional_id=f"{estate.prefix}client").transaction(closing)
    closes = dict(zip(stay | late, in_transaction, strict=True))
    estate.start()

    for ending in estate.endings(*stay, *late):
        session = ending["session"]
        (start,) = counted(estate, (started | later)[session])
        assert ending["cause"] == "closed"
        assert ending["started_at"] == instant_of(start)
        assert ending["due_at"] == closes[session].stamp
        if session in stay:
            assert ending["last_seen_at"] == last_seen(estate, session, first_touch, last_touch)
        else:
            assert ending["last_seen_at"] == ending["started_at"]
    for start in later.values():
        assert grew_by_the_absence(estate, start)
    for ending in estate.endings(*go):
        assert ending["cause"] == "idle"
        assert ending["due_at"] == instant_of(*counted(estate, gone[ending["session"]])) + 1_000
        assert ending["due_at"] >= instant_of(gone[ending["session"]]) + 1_000
    for ending in estate.endings(*crew):
        assert (ending["cause"], ending["policy_version"], ending["idle_ms"]) == ("idle", version, 2_000)
        assert ending["due_at"] == ending["started_at"] + 2_000
    for ending in estate.endings(*thrown):
        order = orders[ending["subject"]]
        assert (ending["cause"], ending["revocation"]) == ("revoked", f"r-{ending['subject']}")
        assert ending["due_at"] == order.stamp


def grew_by_the_absence(estate: Estate, origin: Stored) -> bool:
    """Return whether the copy is as much older as the log certainly is, written as its origin was with no worker there.

    An owner forwards nothing before its first tick stands in the log, so at least that much has passed.
    """
    (copy,) = counted(estate, origin)
    if copy is origin:
        return True
    ticks = (one for one in estate.activity.records if b'"clock.tick"' in (one.value or b""))
    first = next(one for one in ticks if one.partition == origin.partition and one.offset > origin.offset)
    passed = first.stamp - origin.stamp
    assert passed > 0
    # 1 ms: ages are whole, rounded down so that none grows by too much.
    grown: int = copy.json["age_ms"] - origin.json["age_ms"]
    return passed - 1 <= grown <= copy.stamp - origin.stamp


def forwarded(records: list[Stored]) -> list[Stored]:
    return [one for one in records if one.value is not None and b'"forwarded"' in one.value]


def last_seen(estate: Estate, session: str, *packed: Stored) -> int:
    """Return the latest instant at which these packed records saw the session, each by what counted of it."""
    instants: list[int] = []
    for record in packed:
        entries = record.json["touches"]
        (index,) = (number for number, entry in enumerate(entries) if entry[0] == session)
        subject = entries[index][1]
        if partition_of(subject, None, PARTITIONS) == record.partition:
            instants.append(record.stamp - entries[index][3])
            continue
        origin = [record.partition, record.offset, index]
        copies = [one for one in forwarded(estate.activity.to_end()) if one.json["forwarded"][:3] == origin]
        instants.append(instant_of(copies[0]))
    return max(instants)


def test_every_ending_stands_the_audit(estate: Estate) -> None:
    estate.fence()
    estate.audit()
    assert estate.read("dead-letters").to_end() == []
