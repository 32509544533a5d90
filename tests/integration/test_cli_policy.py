"""Goal: a policy that was set is read back whole, by the program and from the topic.

Method: the real program against a real broker; the topic is read by another client.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka import Consumer

from lapse.pipeline.operations.policies import read_policies
from lapse.pipeline.operations.topics import apply_topics
from lapse.pipeline.settings import Settings
from lapse.schemas import DEFAULT_POLICY

from tests.cli.running import Outcome, lapse


@pytest.fixture
async def topics(settings: Settings) -> Settings:
    await apply_topics(settings)
    return settings


def policy(*arguments: str, settings: Settings) -> Outcome:
    return lapse("policy", *arguments, settings=settings)


def read_topic(topic: str, bootstrap: str, count: int) -> list[tuple[bytes, dict[str, Any]]]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": topic, "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    records: list[tuple[bytes, dict[str, Any]]] = []
    try:
        while len(records) < count:
            message = consumer.poll(10)
            assert message is not None, f"{topic} has {len(records)} records, expected {count}"
            assert not message.error()
            key, value = message.key(), message.value()
            assert key is not None
            assert value is not None
            records.append((key, json.loads(value)))
    finally:
        consumer.close()
    return records


def test_the_built_in_default_is_there_before_any_is_set(topics: Settings) -> None:
    [row] = policy("list", "--json", settings=topics).rows
    assert row == DEFAULT_POLICY.model_dump(mode="json") | {"version": None, "set_at": None}


def test_a_policy_is_written_as_the_contract_says_and_read_back(topics: Settings) -> None:
    arguments = ["--idle", "15m", "--absolute", "8h", "--warn-before", "1m", "--by", "alice@ops", "--note", "why not"]
    rules = ["--match-tenant", "acme", "--match-service", "web", "--match-attribute", "role=admin"]
    outcome = policy("set", "workforce", *arguments, *rules, settings=topics)
    assert outcome.code == 0, outcome.err
    expected = {
        "type": "policy",
        "v": 1,
        "name": "workforce",
        "idle_ms": 900_000,
        "absolute_ms": 28_800_000,
        "warn_before_ms": 60_000,
        "hold_max_ms": 3_600_000,
        "token_life_ms": None,
        "match": {"tenant": ["acme"], "service": ["web"], "attributes": {"role": ["admin"]}},
        "by": "alice@ops",
        "note": "why not",
    }
    assert read_topic(f"{topics.prefix}policies", topics.kafka, 1) == [(b"workforce", expected)]
    [row] = policy("show", "workforce", "--json", settings=topics).rows
    assert row.pop("set_at") > 0
    assert row == expected | {"version": 0}


def test_what_is_not_given_stays_as_it_was(topics: Settings) -> None:
    first = ["--idle", "15m", "--absolute", "8h", "--warn-before", "1m", "--match-tenant", "acme"]
    assert policy("set", "p", *first, settings=topics).code == 0
    assert policy("set", "p", "--idle", "10m", settings=topics).code == 0
    assert policy("set", "p", "--absolute", "none", "--no-match", settings=topics).code == 0
    [row] = policy("show", "p", "--json", settings=topics).rows
    assert (row["idle_ms"], row["absolute_ms"], row["warn_before_ms"]) == (600_000, None, 60_000)
    assert row["match"] is None
    assert row["version"] == 2


@pytest.mark.parametrize("given", [[], ["--idle", "15m"], ["--absolute", "8h"]])
def test_a_new_policy_must_name_both_limits(topics: Settings, given: list[str]) -> None:
    outcome = policy("set", "new", *given, settings=topics)
    assert outcome.code == 2
    assert "--idle and --absolute" in outcome.err
    assert policy("show", "new", settings=topics).code == 1


def test_the_default_can_be_changed_in_one_limit(topics: Settings) -> None:
    assert policy("set", "default", "--idle", "10m", settings=topics).code == 0
    [row] = policy("show", "default", "--json", settings=topics).rows
    assert (row["idle_ms"], row["absolute_ms"], row["version"]) == (600_000, DEFAULT_POLICY.absolute_ms, 0)


def test_a_policy_that_makes_no_sense_is_a_usage_error(topics: Settings) -> None:
    outcome = policy("set", "p", "--idle", "1m", "--absolute", "31d", settings=topics)
    assert outcome.code == 2
    assert "session_life_max_ms" in outcome.err
    assert [row["name"] for row in policy("list", "--json", settings=topics).rows] == ["default"]


def test_an_unknown_policy_is_told_with_those_that_there_are(topics: Settings) -> None:
    outcome = policy("show", "nope", settings=topics)
    assert outcome.code == 1
    assert "default" in outcome.err


def test_people_see_a_table(topics: Settings) -> None:
    policy("set", "workforce", "--idle", "15m", "--absolute", "none", settings=topics)
    out = policy("list", settings=topics).out
    assert "workforce" in out
    assert "15m" in out
    assert "idle" in policy("show", "workforce", settings=topics).out


async def test_a_bad_record_among_the_policies_stops_nothing(topics: Settings) -> None:
    async with AIOKafkaProducer(bootstrap_servers=topics.kafka) as producer:
        for value in (b"not json", None, b'{"type":"policy"}'):
            await producer.send_and_wait(f"{topics.prefix}policies", value, key=b"x")
    assert list(await read_policies(topics)) == ["default"]


async def test_the_topic_is_read_to_its_end_where_the_last_offsets_hold_no_record(topics: Settings) -> None:
    # A transaction ends with a marker, which takes an offset and is no record; a reader that waits for a record at the
    # last offset waits for ever. And each start must begin at the beginning, not sometimes at the end.
    producer = AIOKafkaProducer(bootstrap_servers=topics.kafka, transactional_id=f"{topics.prefix}test")
    await producer.start()
    try:
        for name in ("a", "b"):
            async with producer.transaction():
                value = b'{"type":"policy","name":"%s","idle_ms":60000}' % name.encode()
                await producer.send_and_wait(f"{topics.prefix}policies", value, key=name.encode())
    finally:
        await producer.stop()
    for _ in range(20):
        found = await read_policies(topics)
        assert [(name, each.version) for name, each in found.items()] == [("a", 0), ("b", 2), ("default", None)]


def test_without_topics_the_command_says_how_to_make_them(settings: Settings) -> None:
    for arguments in (["list"], ["set", "p", "--idle", "1m", "--absolute", "1h"]):
        outcome = policy(*arguments, settings=settings)
        assert outcome.code == 1
        assert "lapse topics apply" in outcome.err
