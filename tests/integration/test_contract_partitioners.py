"""Goal: a client with another partitioner, or with none, loses nothing: no session early, none missed, none twice.

Method: confluent-kafka with its own default partitioner (CRC32 over the key), without keys, and with partitions named
outright and wrong; what the processor forwards is read from the log, and every ending compared with what the client's
own records say. Ages grow on the way by the owner's estimate: never by too much (that would end a session early), and
what the log says of a copy is what counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lapse.schemas import partition_of

from tests.brokers import Broker
from tests.integration._estate import PARTITIONS, Estate, estate_on, session_names
from tests.integration._raw import RawWriter, Stored, published
from tests.processor.support import subjects_of

pytestmark = pytest.mark.broker


# A copy must come while its session is live, also on a machine that is busy with other things.
UNHURRIED = {"type": "policy", "name": "unhurried", "idle_ms": 3_000, "absolute_ms": None}


@pytest.fixture(scope="module")
def estate(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Estate]:
    with estate_on(broker, tmp_path_factory.mktemp("partitioners"), UNHURRIED) as made:
        yield made


def about(kind: str, session: str, subject: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "session": session, "subject": subject, "service": "raw", "age_ms": 0, **more}


def right(subject: str) -> int:
    return partition_of(subject, None, PARTITIONS)


def instant_of(record: Stored) -> int:
    """Return when it happened, by the log it stands in."""
    age_ms: int = record.json["age_ms"]
    return record.stamp - age_ms


def test_under_another_hash_of_the_key_every_session_ends_once_where_it_belongs(estate: Estate) -> None:
    writer = estate.written_by(partitioner="consistent_random")
    subjects = [f"u-{number}" for number in range(24)]
    people = dict(zip(session_names(len(subjects)), subjects, strict=True))
    stood = writer.activities(
        record
        for one, who in people.items()
        for record in (
            about("session.started", one, who, age_ms=700, policy="unhurried"),
            about("session.touched", one, who),
        )
    )
    starts, touches = stood[0::2], stood[1::2]
    misplaced = [start for start, who in zip(starts, subjects, strict=True) if start.partition != right(who)]
    assert 0 < len(misplaced) < len(subjects), "the two hashes agree on all or on none: this would prove nothing"
    endings = estate.endings(*people)
    for ending, subject, start, touch in zip(endings, subjects, starts, touches, strict=True):
        assert ending["cause"] == "idle"
        assert ending["evidence"]["partition"] == right(subject)
        # Counted as where it stood, or later by what the estimate lagged behind.
        assert ending["started_at"] >= instant_of(start)
        assert ending["last_seen_at"] >= instant_of(touch)
        if start.partition == right(subject):
            assert (ending["started_at"], ending["last_seen_at"]) == (instant_of(start), instant_of(touch))
        else:
            first, then = estate.copies_of(start, touch)
            assert (ending["started_at"], ending["last_seen_at"]) == (instant_of(first), instant_of(then))
    estate.fence()
    assert len([one for one in estate.read("expiries").to_end() if one.key != b"watermark"]) == len(estate.ended())


@pytest.mark.parametrize("how", ["keyless", "named"])
def test_records_that_land_anywhere_are_one_session(estate: Estate, how: str) -> None:
    """Each record in another partition than the one before, as without a key; the copy of each is awaited."""
    subjects = [f"v-{how}-{number}" for number in range(4)]
    people = dict(zip(session_names(4), subjects, strict=True))
    closes = {}
    for session, subject in people.items():
        start = misplace(estate.writer, how, about("session.started", session, subject, age_ms=900, policy="office"))
        touch = misplace(estate.writer, how, about("session.touched", session, subject, age_ms=200), start)
        (first, then) = stands(estate, subject, start, touch)
        close = misplace(estate.writer, how, about("session.closed", session, subject), touch)
        closes[session] = (first, then, *stands(estate, subject, close))
    for ending, (first, then, close) in zip(estate.endings(*people), closes.values(), strict=True):
        assert ending["cause"] == "closed"
        assert ending["started_at"] == instant_of(first)
        assert ending["last_seen_at"] == instant_of(then)
        assert ending["due_at"] == instant_of(close)
        assert ending["evidence"] == {"partition": close.partition, "offset": close.offset}


def misplace(writer: RawWriter, how: str, record: dict[str, Any], before: Stored | None = None) -> Stored:
    """Append it where the client's whim has it: without a key, or to the partition after the one before."""
    if how == "keyless":
        return writer.activity(record, keyed=False)
    last = right(record["subject"]) if before is None else before.partition
    return writer.activity(record, partition=(last + 1) % PARTITIONS)


def stands(estate: Estate, subject: str, *records: Stored) -> list[Stored]:
    """Return each record where it counts: itself, or its copy once it is there."""
    return [one if one.partition == right(subject) else estate.copies_of(one)[0] for one in records]


def test_the_live_stay_live_and_the_due_end(estate: Estate) -> None:
    """In every partition, one who stays and one who goes, told from every wrong partition."""
    wrong = [(of, at) for of in range(PARTITIONS) for at in range(PARTITIONS) if of != at]
    stays, goes = session_names(len(wrong)), session_names(len(wrong))
    started = []
    for (of, at), stay, go in zip(wrong, stays, goes, strict=True):
        (subject,) = subjects_of(of, PARTITIONS, 1)
        records = [
            about("session.started", stay, subject, policy="office"),
            about("session.started", go, subject, policy="brief"),
        ]
        started += estate.writer.activities(records, partition=at)
    endings = estate.endings(*goes)
    assert {one["cause"] for one in endings} == {"idle"}
    estate.fence()
    assert not set(stays) & estate.ended().keys()
    for (of, at), stay in zip(wrong, stays, strict=True):
        (subject,) = subjects_of(of, PARTITIONS, 1)
        estate.writer.activity(about("session.closed", stay, subject), partition=at)
    firsts = dict(zip(stays, estate.copies_of(*started[0::2]), strict=True))
    for ending in estate.endings(*stays):
        assert ending["cause"] == "closed"
        assert ending["started_at"] == instant_of(firsts[ending["session"]])


@pytest.mark.parametrize("at", range(PARTITIONS))
def test_packed_touches_of_all_partitions_count_one_by_one(estate: Estate, at: int) -> None:
    people: dict[str, str] = {}
    for number in range(PARTITIONS):
        people |= zip(session_names(3), subjects_of(number, PARTITIONS, 3), strict=True)
    estate.writer.activities(
        [about("session.started", one, who, age_ms=2_000, policy="office") for one, who in people.items()]
    )
    packed = {
        "type": "touches",
        "service": "raw",
        "touches": [[one, who, None, 100 + index] for index, (one, who) in enumerate(people.items())],
    }
    (stood,) = estate.writer.activities([packed], keyed=False, partition=at)
    copies = entry_copies(estate, stood, [index for index, who in enumerate(people.values()) if right(who) != at])
    estate.writer.activities([about("session.closed", one, who) for one, who in people.items()])
    for index, ending in enumerate(estate.endings(*people)):
        assert ending["cause"] == "closed"
        assert ending["evidence"]["partition"] == right(ending["subject"])
        expected = instant_of(copies[index]) if index in copies else stood.stamp - (100 + index)
        assert ending["last_seen_at"] == expected >= stood.stamp - (100 + index)


def entry_copies(estate: Estate, packed: Stored, entries: list[int]) -> dict[int, Stored]:
    """Wait until these entries stand in their right partitions, each alone; return them by index."""
    found: dict[int, Stored] = {}

    def all_there(records: list[Stored]) -> bool:
        for record in records:
            if record.value is not None and b'"forwarded"' in record.value:
                partition, offset, index, stamp = record.json["forwarded"]
                if (partition, offset) == (packed.partition, packed.offset):
                    assert stamp == packed.stamp
                    assert found.setdefault(index, record) is record, "an entry was forwarded twice"
        return found.keys() >= set(entries)

    def anew(records: list[Stored]) -> bool:
        found.clear()
        return all_there(records)

    estate.activity.until(anew, f"entries {entries} of {packed}")
    assert sorted(found) == entries, "an entry was forwarded that stood right"
    return found


def test_a_touch_that_comes_before_its_start_is_put_right_by_it(estate: Estate) -> None:
    """The touch stands right and the start does not: it is adopted first, then gets its start and its policy."""
    (session,), (subject,) = session_names(1), subjects_of(2, PARTITIONS, 1)
    start = estate.writer.activity(
        about("session.started", session, subject, age_ms=100, policy="unhurried"), partition=3
    )
    touch = estate.writer.activity(about("session.touched", session, subject))
    (copy,) = estate.copies_of(start)
    (ending,) = estate.endings(session)
    assert (ending["cause"], ending["policy"]) == ("idle", "unhurried")
    assert ending["started_at"] == instant_of(copy)
    assert ending["last_seen_at"] == max(touch.stamp, instant_of(copy))


def test_an_order_under_another_hash_reaches_its_subject(estate: Estate) -> None:
    writer = estate.written_by(partitioner="consistent_random")
    subjects = [f"w-{number}" for number in range(8)]
    sessions = session_names(len(subjects))
    estate.writer.activities(
        [about("session.started", one, who, policy="office") for one, who in zip(sessions, subjects, strict=True)]
    )
    orders = [writer.revoke({"type": "revocation", "id": f"r-{who}", "subject": who}) for who in subjects]
    assert any(order.partition != right(who) for order, who in zip(orders, subjects, strict=True))
    for ending, order, subject in zip(estate.endings(*sessions), orders, subjects, strict=True):
        assert (ending["cause"], ending["revocation"]) == ("revoked", f"r-{subject}")
        assert ending["due_at"] == order.stamp
        assert ending["evidence"]["partition"] == right(subject)


def test_what_is_forwarded_is_of_the_published_form_and_no_letter_is_dead(estate: Estate) -> None:
    copies = [one for one in estate.activity.to_end() if one.value is not None and b'"forwarded"' in one.value]
    assert copies
    for copy in copies:
        published("lapse.activity").validate(copy.json)
        assert copy.partition == right(copy.json["subject"])
    assert estate.read("dead-letters").to_end() == []
    assert estate.metric("lapse_forwards_total") == len(copies)


def test_every_ending_stands_the_audit(estate: Estate) -> None:
    estate.audit()
