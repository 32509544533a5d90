"""Goal: an order is in the log where the sessions are that it ends, once the command has ended.

Method: the real program against a real broker; the topic is read by another client.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from lapse.pipeline.operations.topics import apply_topics
from lapse.pipeline.settings import Settings
from lapse.schemas import parse_revocation, partition_of, session_reference

from tests.cli.running import flags_of, lapse, program

REF = session_reference("a session id")


@pytest.fixture
async def topics(settings: Settings) -> Settings:
    await apply_topics(settings)
    return settings


def written(settings: Settings) -> list[tuple[int, bytes | None, dict[str, Any]]]:
    """Return (partition, key, value) of every record of the revocations topic, by another client."""
    topic = f"{settings.prefix}revocations"
    consumer = Consumer(
        {
            "bootstrap.servers": settings.kafka,
            "group.id": topic,
            "enable.partition.eof": True,
            "enable.auto.commit": False,
        }
    )
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(settings.partitions)])
    records: list[tuple[int, bytes | None, dict[str, Any]]] = []
    ended = 0
    try:
        while ended < settings.partitions:
            message = consumer.poll(10)
            assert message is not None
            if message.error():
                ended += 1
            else:
                partition, value = message.partition(), message.value()
                assert partition is not None
                assert value is not None
                records.append((partition, message.key(), json.loads(value)))
    finally:
        consumer.close()
    return records


@pytest.mark.parametrize("target", [["subject", "u-42"], ["session", REF, "--subject", "u-42"]])
@pytest.mark.parametrize("tenant", [None, "acme"])
def test_an_order_with_a_subject_is_written_once_to_the_subjects_partition(
    topics: Settings, target: list[str], tenant: str | None
) -> None:
    flags = [] if tenant is None else ["--tenant", tenant]
    outcome = lapse("revoke", *target, *flags, "--reason", "admin", "--json", settings=topics)
    assert outcome.code == 0, outcome.err
    [(partition, key, value)] = written(topics)
    assert partition == partition_of("u-42", tenant, topics.partitions)
    assert key == (b"u-42" if tenant is None else b"acme/u-42")
    assert value["session"] == (REF if "session" in target else None)
    assert (value["subject"], value["tenant"]) == ("u-42", tenant)
    [row] = outcome.rows
    assert row["id"] == value["id"]
    assert row["written"] == [{"partition": partition, "offset": 0}]
    assert row["ordered_at"] > 0


@pytest.mark.parametrize(
    "target",
    [["tenant", "acme", "--yes"], ["everyone", "--yes"], ["session", REF], ["session", REF, "--tenant", "acme"]],
)
def test_an_order_without_a_subject_is_written_to_every_partition_with_one_id(
    topics: Settings, target: list[str]
) -> None:
    outcome = lapse("revoke", *target, "--reason", "incident", settings=topics)
    assert outcome.code == 0, outcome.err
    records = written(topics)
    assert sorted(partition for partition, _, _ in records) == list(range(topics.partitions))
    assert {key for _, key, _ in records} == {None}
    assert len({value["id"] for _, _, value in records}) == 1
    assert outcome.out.startswith(records[0][2]["id"])


def test_every_order_can_be_read_by_those_who_obey_it(topics: Settings) -> None:
    order = ["--reason", "admin", "--note", "stolen laptop", "--by", "alice@ops"]
    assert lapse("revoke", "subject", "u-42", *order, settings=topics).code == 0
    [(_, _, value)] = written(topics)
    revocation = parse_revocation(json.dumps(value).encode())
    assert (revocation.reason, revocation.note, revocation.by) == ("admin", "stolen laptop", "alice@ops")


def test_who_is_not_named_is_told_by_user_and_machine(topics: Settings) -> None:
    lapse("revoke", "subject", "u-42", "--reason", "admin", settings=topics)
    [(_, _, value)] = written(topics)
    assert "@" in value["by"]


def test_raw_writes_the_hash_and_nothing_else_of_the_session_id(topics: Settings) -> None:
    for given in ("s3cr3t", "s3cr3t\n", "s3cr3t\r\n"):
        order = ["--raw", "--reason", "admin", "--subject", "u"]
        outcome = lapse("revoke", "session", *order, settings=topics, given=given)
        assert outcome.code == 0, outcome.err
    records = written(topics)
    assert [value["session"] for _, _, value in records] == [session_reference("s3cr3t")] * 3
    assert "s3cr3t" not in json.dumps([value for _, _, value in records])


def test_raw_hashes_with_the_estates_key_where_there_is_one(
    topics: Settings, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_bytes(b"a key of the estate\n")
    order = ["--raw", "--reason", "admin", "--subject", "u"]
    from_file = ["--key-file", str(tmp_path / "key")]
    assert lapse("revoke", "session", *order, *from_file, settings=topics, given="s3cr3t\n").code == 0
    monkeypatch.setenv("LAPSE_REFERENCE_KEY", "another key, of all")
    assert lapse("revoke", "session", *order, settings=topics, given="s3cr3t\n").code == 0
    assert lapse("revoke", "session", *order, *from_file, settings=topics, given="s3cr3t\n").code == 0
    estates, others = (session_reference("s3cr3t", key) for key in (b"a key of the estate", b"another key, of all"))
    assert [value["session"] for _, _, value in written(topics)] == [estates, others, estates]


def test_a_raw_id_may_be_any_bytes(topics: Settings) -> None:
    order = ["revoke", "session", "--raw", "--reason", "admin", "--subject", "u"]
    done = subprocess.run(program(*order, *flags_of(topics)), input=b"s3\xffcr3t\n", capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    [(_, _, value)] = written(topics)
    assert value["session"] == session_reference(b"s3\xffcr3t")


def test_without_topics_nothing_is_written_and_none_is_made(settings: Settings) -> None:
    for _ in range(2):
        outcome = lapse("revoke", "subject", "u-42", "--reason", "admin", settings=settings)
        assert outcome.code == 1
        assert "lapse topics apply" in outcome.err
