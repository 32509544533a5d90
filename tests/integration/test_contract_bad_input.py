"""Goal: whatever is written to the input topics, it is named in the dead letters or does as it says, and stops nothing.

Method: raw bytes from confluent-kafka, each followed, in the same partition, by the start of a session that must end on
time; then the dead letters, read by another client and checked against their published schema. Records that only
workers may write are made from genuine ones: changed, moved, or signed under another key.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from lapse.schemas import sign

from tests.brokers import Broker
from tests.integration._estate import PARTITIONS, Estate, estate_on, session_names
from tests.integration._raw import Stored
from tests.processor.support import subjects_of

pytestmark = pytest.mark.broker

MEGABYTES_2 = 2_097_152
KEPT_BYTES = 4_096
AGE_MAX_MS = 3_600_000

# What is bad is written to this partition; its subject belongs there, so that nothing is forwarded.
AT = 1
(SUBJECT,) = subjects_of(AT, PARTITIONS, 1)


def touch(**changed: Any) -> bytes:
    """Return a good touch but for what is changed; None: left out."""
    good = {"type": "session.touched", "session": "s", "subject": SUBJECT, "service": "raw", "age_ms": 0} | changed
    return json.dumps({name: value for name, value in good.items() if value is not None}).encode()


def start_of(session: str) -> bytes:
    return touch(type="session.started", session=session, policy="brief")


def packed(*touches: Any) -> bytes:
    return json.dumps({"type": "touches", "service": "raw", "touches": touches}).encode()


GOOD_ENTRY = ["s-in-packed", SUBJECT, None, 0]

# By what is wrong: the value, and what the reason must say.
ACTIVITY: dict[str, tuple[bytes | None, str]] = {
    "null value": (None, "null"),
    "empty": (b"", "not JSON"),
    "not JSON": (b"session.touched s u-42", "not JSON"),
    "two values": (touch() + touch(), "not JSON"),
    "cut short": (touch()[:-9], "not JSON"),
    "NaN": (touch().replace(b'"age_ms": 0', b'"age_ms": NaN'), "not JSON"),
    "bad UTF-8": (touch().replace(b'"s"', b'"\xff\xfe"'), "UTF-8"),
    "UTF-16": (touch().decode().encode("utf-16"), "UTF-8"),
    "a lone surrogate": (touch(session="\ud800"), "not JSON|session"),
    "an array": (b"[" + touch() + b"]", "not a JSON object"),
    "a number": (b"42", "not a JSON object"),
    "no type": (touch(type=None), "type: is missing"),
    "a type of a wrong type": (touch(type=7), "type: must be text"),
    "an unknown type": (touch(type="session.teleported"), "'session.teleported' is unknown"),
    "a type of another topic": (touch(type="session.ended"), "'session.ended' is unknown"),
    "a newer version": (touch(v=2), "newer"),
    "version 0": (touch(v=0), "v: "),
    "no session": (touch(session=None), r"session\.touched: session: "),
    "no subject": (touch(subject=None), r"subject: "),
    "no service": (touch(service=None), r"service: "),
    "no age": (touch(age_ms=None), r"age_ms: "),
    "an empty session": (touch(session=""), r"session: "),
    "an empty subject": (touch(subject=""), r"subject: "),
    "a session of 257 characters": (touch(session="s" * 257), r"session: .*256"),
    "a session that is a number": (touch(session=7), r"session: "),
    "a slash in the tenant": (touch(tenant="acme/eu"), r"tenant: "),
    "an age that is text": (touch(age_ms="0"), r"age_ms: "),
    "an age that is true": (touch(age_ms=True), r"age_ms: "),
    "an age with a fraction": (touch(age_ms=1.5), r"age_ms: "),
    "an age written as a float": (touch().replace(b'"age_ms": 0', b'"age_ms": 1.0'), r"age_ms: "),
    "an age of 65 bits": (touch(age_ms=2**64), r"age_ms: "),
    "attributes that are a list": (touch(type="session.started", attributes=["admin"]), r"attributes: "),
    "an attribute that is a number": (touch(type="session.started", attributes={"level": 3}), r"attributes\.level: "),
    "10,000 arrays deep": (b"[" * 10_000 + b"]" * 10_000, "nested deeper than 16"),
    "10,000 objects deep": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested deeper than 16"),
    "17 deep in an unknown field": (touch(extra=json.loads("[" * 16 + "]" * 16)), "nested deeper than 16"),
    "2 MB": (touch(note="x" * (MEGABYTES_2 - 200)), r"bytes, more than 65536"),
    "2 MB of nothing": (b"\0" * MEGABYTES_2, r"bytes, more than 65536"),
    "a byte too long": (touch(note="x" * (65_536 - len(touch(note="")) + 1)), r"65537 bytes, more than 65536"),
    "a packed record of 501": (packed(*[GOOD_ENTRY] * 501), "500"),
    "a packed record of nothing readable": (packed().replace(b"[]", b'"all of them"'), r"touches: "),
    "a packed record without a service": (packed(GOOD_ENTRY).replace(b'"service"', b'"sirvice"'), r"service: "),
}

# Refused for its mac alone: without it, or with one that is not of these bytes under this key for this place.
CONTROL: dict[str, dict[str, Any]] = {
    "clock.tick": {"epoch": 10**6, "owner": "intruder", "mono_ms": 1, "wall_at": 1, "prev_ms": None, "ack_ms": None,
                   "up_ms": 10**9},
    "revocation.ordered": {"at": 10**13, "revocation": {"type": "revocation", "id": "forged", "everyone": True}},
    "policy.adopted": {"version": 10**6, "policy": {"type": "policy", "name": "office", "idle_ms": 1}},
    "session.started": {"session": "forged", "subject": SUBJECT, "service": "raw", "age_ms": 0, "policy": "brief",
                        "forwarded": [0, 10**6, None, 1]},
    "session.touched": {"session": "forged", "subject": SUBJECT, "service": "raw", "age_ms": 0,
                        "forwarded": [0, 10**6, 3, 1]},
    "session.closed": {"session": "forged", "subject": SUBJECT, "service": "raw", "age_ms": 0,
                       "forwarded": [0, 10**6, None, 1]},
}  # fmt: skip

MACS: dict[str, Callable[[Estate, dict[str, Any]], Any]] = {
    "no mac": lambda estate, record: None,
    "an empty one": lambda estate, record: "",
    "a made up one": lambda estate, record: "A" * 43,
    "one under another key": lambda estate, record: _sign(estate, record, key=b"another key, as long as ours"),
    "one for another partition": lambda estate, record: _sign(estate, record, partition=AT + 1),
    "one for another topic": lambda estate, record: _sign(estate, record, topic="activity"),
    "one of other content": lambda estate, record: _sign(estate, record | {"v": 1, "owner": "w-7", "age_ms": 9}),
    "a number": lambda estate, record: 7,
}

REVOCATIONS: dict[str, tuple[bytes | None, str]] = {
    "null value": (None, "null"),
    "not JSON": (b"revoke everyone", "not JSON"),
    "no target": (b'{"type":"revocation","id":"r"}', "target"),
    "everyone and a tenant": (b'{"type":"revocation","id":"r","everyone":true,"tenant":"acme"}', "everyone"),
    "everyone that is text": (b'{"type":"revocation","id":"r","everyone":"true"}', "everyone"),
    "no id": (b'{"type":"revocation","everyone":true}', r"id: "),
    "a newer version": (b'{"type":"revocation","v":2,"id":"r","everyone":true}', "newer"),
    "an activity": (touch(), "'session.touched' is unknown"),
    "2 MB": (b'{"type":"revocation","id":"r","everyone":true,"note":"' + b"x" * MEGABYTES_2 + b'"}', "more than 65536"),
}

POLICIES: dict[str, tuple[bytes | None, str]] = {
    "null value": (None, "null"),
    "not JSON": (b"idle: 15m", "not JSON"),
    "no name": (b'{"type":"policy","idle_ms":1}', r"name: "),
    "an idle limit of 0": (b'{"type":"policy","name":"office","idle_ms":0}', r"idle_ms: "),
    "an idle limit that is text": (b'{"type":"policy","name":"office","idle_ms":"15m"}', r"idle_ms: "),
    "a newer version": (b'{"type":"policy","v":2,"name":"office","idle_ms":1}', "newer"),
    "2 MB": (b'{"type":"policy","name":"office","idle_ms":1,"note":"' + b"x" * MEGABYTES_2 + b'"}', "more than 65536"),
}


def _sign(estate: Estate, record: dict[str, Any], **other: Any) -> str:
    topic = other.pop("topic", f"{estate.prefix}activity")
    return sign(record, **{"topic": topic, "partition": AT, "key": estate.settings.worker_key} | other)


@dataclass
class Written:
    """What was written, by (topic, what is wrong), and who started after each."""

    estate: Estate
    bad: dict[tuple[str, str], Stored] = field(default_factory=dict)
    values: dict[tuple[str, str], bytes | None] = field(default_factory=dict)
    after: dict[tuple[str, str], str] = field(default_factory=dict)

    def write(self, topic: str, values: dict[str, bytes | None], partition: int = AT) -> None:
        """Append them in one go, and between them in activity sessions that are to end by themselves."""
        sessions = dict(zip(values, session_names(len(values)), strict=True))
        starts = {name: start_of(session) for name, session in sessions.items()}
        if topic == "activity":
            both = [(one, b"\xffkey", AT) for name, value in values.items() for one in (value, starts[name])]
            stood = self.estate.writer.append_all("activity", both)[0::2]
        else:
            stood = self.estate.writer.append_all(topic, [(value, b"\xffkey", partition) for value in values.values()])
            self.estate.writer.append_all("activity", [(start, None, AT) for start in starts.values()])
        for (name, value), bad in zip(values.items(), stood, strict=True):
            self.bad[topic, name] = bad
            self.values[topic, name] = value
            self.after[topic, name] = sessions[name]

    def letter(self, topic: str, name: str) -> dict[str, Any]:
        """Wait for its dead letter, and return it; there is one."""
        bad = self.bad[topic, name]
        reader, key = self.estate.read("dead-letters"), f"{self.estate.prefix}{topic}/{bad.partition}/{bad.offset}"
        found = [one.json for one in reader.until(lambda seen: any(one.key == key.encode() for one in seen), key)
                 if one.key == key.encode()]  # fmt: skip
        assert len(found) == 1, found
        return found[0]

    def hold(self, topic: str, name: str, reason: str) -> None:
        """Hold its dead letter to what was written, and its session to ending on time."""
        bad, value, letter = self.bad[topic, name], self.values[topic, name], self.letter(topic, name)
        place = (letter["topic"], letter["partition"], letter["offset"], letter["entry"])
        assert place == (f"{self.estate.prefix}{topic}", bad.partition, bad.offset, None)
        assert re.search(reason, letter["reason"]), letter["reason"]
        assert letter["size"] == len(value or b"")
        kept = None if letter["value"] is None else base64.b64decode(letter["value"])
        assert kept == (None if value is None else value[:KEPT_BYTES])
        (ending,) = self.estate.endings(self.after[topic, name])
        assert (ending["cause"], ending["due_at"]) == ("idle", ending["started_at"] + 1_000)


@pytest.fixture(scope="module")
def written(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    """All of it, written to one worker without waiting for anything."""
    with estate_on(broker, tmp_path_factory.mktemp("bad")) as estate:
        everything = Written(estate)
        activity = {name: value for name, (value, _) in ACTIVITY.items()}
        for kind, content in CONTROL.items():
            for name, make in MACS.items():
                record = {"type": kind, **content}
                if (mac := make(estate, record)) is not None:
                    record["mac"] = mac
                activity[f"{kind}, {name}"] = json.dumps(record).encode()
        everything.write("activity", activity)
        everything.write("revocations", {name: value for name, (value, _) in REVOCATIONS.items()})
        everything.write("policies", {name: value for name, (value, _) in POLICIES.items()}, partition=0)
        yield everything


@pytest.mark.parametrize("name", ACTIVITY)
def test_bad_activity_is_dead_lettered_and_stops_nothing(written: Written, name: str) -> None:
    written.hold("activity", name, ACTIVITY[name][1])


@pytest.mark.parametrize("mac", MACS)
@pytest.mark.parametrize("kind", CONTROL)
def test_what_only_workers_may_write_is_refused_without_their_mac(written: Written, kind: str, mac: str) -> None:
    written.hold("activity", f"{kind}, {mac}", r"mac")


@pytest.mark.parametrize("name", REVOCATIONS)
def test_a_bad_revocation_is_dead_lettered_and_revokes_nobody(written: Written, name: str) -> None:
    written.hold("revocations", name, REVOCATIONS[name][1])


@pytest.mark.parametrize("name", POLICIES)
def test_a_bad_policy_is_dead_lettered_and_changes_nothing(written: Written, name: str) -> None:
    written.hold("policies", name, POLICIES[name][1])


def test_a_genuine_control_record_moved_to_another_partition_is_refused(written: Written) -> None:
    estate = written.estate
    genuine: dict[str, Stored] = {}
    for record in estate.activity.to_end():
        if record.partition != AT and record.key is None and b'"mac"' in (record.value or b""):
            kind = record.value is not None and _type_of(record.value)
            if kind in ("clock.tick", "policy.adopted"):
                genuine[str(kind)] = record
    assert genuine.keys() == {"clock.tick", "policy.adopted"}
    written.write("activity", {f"moved {kind}": record.value for kind, record in genuine.items()})
    for kind in genuine:
        written.hold("activity", f"moved {kind}", r"mac")


def _type_of(value: bytes) -> Any:
    try:
        return json.loads(value).get("type")
    except ValueError:
        return None


def test_a_bad_entry_of_a_packed_record_is_dead_lettered_alone(written: Written) -> None:
    estate = written.estate
    sessions = session_names(3)
    about = {"subject": SUBJECT, "service": "raw", "policy": "office"}
    estate.writer.activities({"type": "session.started", "session": one, "age_ms": 2_000, **about} for one in sessions)
    bad: list[Any] = [
        ["s", SUBJECT, None], ["s", SUBJECT, None, "0"], ["", SUBJECT, None, 0], ["s", SUBJECT, "a/b", 0], None, "s",
        {}, ["s", SUBJECT, None, 0, 0, 0, 0], ["s", SUBJECT, None, 0, None, -(2**63) - 1],
        ["s" * 257, SUBJECT, None, 0], [],
    ]  # fmt: skip
    told = 8  # further ones of a record have no letter
    touches = [[sessions[0], SUBJECT, None, 30], *bad[:5], [sessions[1], SUBJECT, None, 20, 900, 400], *bad[5:],
               [sessions[2], SUBJECT, None, 10]]  # fmt: skip
    value = packed(*touches)
    stood = estate.writer.append("activity", value, None, AT)
    closes = estate.writer.activities(
        {"type": "session.closed", "session": one, "subject": SUBJECT, "service": "raw", "age_ms": 0}
        for one in sessions
    )
    for ending, close, age in zip(estate.endings(*sessions), closes, (30, 20, 10), strict=True):
        assert ending["cause"] == "closed"
        assert ending["evidence"]["offset"] == close.offset
        assert ending["last_seen_at"] == stood.stamp - age
    entries = [index for index, one in enumerate(touches) if one in bad][:told]
    letters = estate.read("dead-letters").until(
        lambda seen: len(of_record(seen, stood)) >= told, f"a letter for each of {entries}"
    )
    assert [letter["entry"] for letter in of_record(letters, stood)] == entries
    for letter in of_record(letters, stood):
        assert f"touches[{letter['entry']}]" in letter["reason"]
        assert (letter["partition"], letter["size"]) == (AT, len(value))


def of_record(letters: list[Stored], record: Stored) -> list[dict[str, Any]]:
    """Return the dead letters of this record of activity."""
    found = [one.json for one in letters]
    return [one for one in found if (one["partition"], one["offset"]) == (record.partition, record.offset)
            and one["topic"].endswith("activity")]  # fmt: skip


def test_ages_out_of_range_are_clamped_and_counted(written: Written) -> None:
    estate = written.estate
    before = clamped(estate)
    negative, old, far, since = session_names(4)
    about = {"subject": SUBJECT, "service": "raw", "policy": "office"}
    ages = {negative: -5, old: AGE_MAX_MS + 1, far: 2**63 - 1}
    starts = dict(
        zip(ages, estate.writer.activities(
            {"type": "session.started", "session": one, "age_ms": age, **about} for one, age in ages.items()
        ), strict=True)
    )  # fmt: skip
    stood = estate.writer.activity({"type": "session.started", "session": since, "age_ms": 0, **about})
    lowest = {"type": "session.touched", "session": since, "age_ms": -(2**63), "since_ms": -1, "pause_ms": 0}
    last = estate.writer.activity({**lowest, "subject": SUBJECT, "service": "raw"})
    for one in (*ages, since):
        closed = {"type": "session.closed", "session": one, "subject": SUBJECT, "service": "raw", "age_ms": 0}
        estate.writer.activity(closed)
    endings = dict(zip((*ages, since), estate.endings(*ages, since), strict=True))
    assert endings[negative]["started_at"] == starts[negative].stamp
    assert endings[negative]["cause"] == "closed"
    # An hour ago, which is the idle limit of the policy: over when it was told.
    for one in (old, far):
        assert endings[one]["started_at"] == starts[one].stamp - AGE_MAX_MS
        assert endings[one]["cause"] == "idle"
    assert endings[since]["started_at"] == stood.stamp
    assert endings[since]["last_seen_at"] == last.stamp
    # Three starts; of the touch both of its ages.
    assert clamped(estate) - before == 5


def clamped(estate: Estate) -> float:
    return estate.metric("lapse_engine_total", what="ages_clamped")


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_what_unpacks_to_more_than_can_be_held_never_gets_in(written: Written, codec: str) -> None:
    """Some kilobytes of 50 MB of nothing: its writer is told, and no reader has to unpack it."""
    writer = written.estate.written_by(compression_type=codec, message_max_bytes=100_000_000)
    with pytest.raises(AssertionError, match="MSG_SIZE_TOO_LARGE"):
        writer.append("activity", b"\0" * 50_000_000, None, AT)


def test_nobody_but_the_bad_is_dead_lettered_and_nobody_forged_has_a_session(written: Written) -> None:
    estate = written.estate
    estate.fence()
    letters = estate.read("dead-letters").to_end()
    whole = [one for one in letters if one.json["entry"] is None]
    assert len(whole) == len(written.bad)
    assert estate.metric("lapse_dead_letters_total") == len(letters)
    assert "forged" not in estate.ended()
    assert not any(record.json.get("revocation") == "forged" for record in estate.ended().values())


def test_the_worker_has_not_even_been_restarted(written: Written) -> None:
    estate = written.estate
    assert estate.running
    assert estate.log.count('"event": "restored"') == 1
    estate.audit()
