"""Goal: after `lapse topics apply` the broker's topics are the catalogue's, and wrong ones are found and left alone.

Method: the real program against a real broker; what it made is looked at by another client (confluent-kafka).
"""

from __future__ import annotations

import asyncio

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from lapse.pipeline.operations.topics import WrongTopics, apply_topics, check_topics
from lapse.pipeline.settings import Settings
from lapse.schemas import TopicNames, catalogue

from tests.brokers import Broker, make_topic
from tests.cli.running import lapse


def counted(settings: Settings) -> list[str]:
    return ["--partitions", str(settings.partitions)]


def make(broker: Broker, name: str, partitions: int, **config: str) -> None:
    make_topic(broker, name, partitions, {key.replace("_", "."): value for key, value in config.items()})


def described(broker: Broker, names: list[str]) -> dict[str, tuple[int, dict[str, str]]]:
    """Return each topic's partition count and settings, as another client reads them."""
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    topics = admin.list_topics(timeout=10).topics
    futures = admin.describe_configs([ConfigResource(ResourceType.TOPIC, name) for name in names])
    configs = {resource.name: future.result(timeout=10) for resource, future in futures.items()}
    return {
        name: (len(topics[name].partitions), {key: entry.value for key, entry in configs[name].items()})
        for name in names
        if name in topics
    }


def test_apply_makes_every_topic_of_the_catalogue_as_it_says(broker: Broker, settings: Settings) -> None:
    outcome = lapse("topics", "apply", "--json", *counted(settings), settings=settings)
    assert outcome.code == 0, outcome.err
    specs = catalogue(
        TopicNames(settings.prefix),
        partitions=settings.partitions,
        replication=1,
        session_life_max_ms=settings.session_life_max_ms,
    )
    assert outcome.rows == [{"topic": spec.name, "created": True} for spec in specs]
    found = described(broker, [spec.name for spec in specs])
    for spec in specs:
        partitions, config = found[spec.name]
        assert partitions == spec.partitions
        assert {key: config[key] for key in spec.config} == spec.config
        assert config["message.timestamp.type"] == "LogAppendTime"


def test_applying_again_changes_nothing(settings: Settings) -> None:
    assert lapse("topics", "apply", *counted(settings), settings=settings).code == 0
    again = lapse("topics", "apply", *counted(settings), settings=settings)
    assert (again.code, again.out) == (0, "")
    assert lapse("topics", "check", *counted(settings), settings=settings).code == 0


def test_check_tells_each_missing_topic_and_makes_none(settings: Settings) -> None:
    for _ in range(2):  # the second time as well: the first made none
        outcome = lapse("topics", "check", "--json", *counted(settings), settings=settings)
        assert outcome.code == 1
        assert len(outcome.rows) == 9
        assert {row["setting"] for row in outcome.rows} == {"topic"}


@pytest.mark.parametrize(
    ("topic", "partitions", "config", "setting"),
    [
        ("activity", 4, {"message_timestamp_type": "CreateTime"}, "message.timestamp.type"),
        ("revocations", 3, {}, "partitions"),
        ("policies", 4, {}, "partitions"),
        ("expiries", 4, {"cleanup_policy": "delete"}, "cleanup.policy"),
        ("revocations", 4, {"retention_ms": "3600000"}, "retention.ms"),
    ],
)
def test_a_wrong_topic_is_refused_by_apply_and_check_and_left_alone(
    broker: Broker, settings: Settings, topic: str, partitions: int, config: dict[str, str], setting: str
) -> None:
    name = settings.prefix + topic
    make(broker, name, partitions, **config)
    before = described(broker, [name])
    for verb in ("apply", "check"):
        outcome = lapse("topics", verb, "--json", *counted(settings), settings=settings)
        assert outcome.code == 1
        wrong = [row for row in outcome.rows if row["topic"] == name]
        assert setting in {row["setting"] for row in wrong}
        assert all(row["why"] and row["remedy"] for row in wrong)
    assert described(broker, [name]) == before
    # Nothing was made beside a wrong topic.
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    assert [each for each in admin.list_topics(timeout=10).topics if each.startswith(settings.prefix)] == [name]


async def test_those_who_apply_at_once_all_succeed_and_each_topic_is_made_once(settings: Settings) -> None:
    created = await asyncio.gather(*(apply_topics(settings) for _ in range(4)))
    assert len([name for names in created for name in names]) == 9
    assert await check_topics(settings) == []


async def test_topics_can_be_used_the_moment_that_apply_returns(settings: Settings) -> None:
    await apply_topics(settings)
    for policy in ("a", "b"):
        outcome = await asyncio.to_thread(
            lapse, "policy", "set", policy, "--idle", "1m", "--absolute", "1h", settings=settings
        )
        assert outcome.code == 0, outcome.err


async def test_another_partition_count_than_the_settings_says_which_to_set(settings: Settings) -> None:
    await apply_topics(settings)
    with pytest.raises(WrongTopics, match=f"LAPSE_PARTITIONS={settings.partitions}"):
        await apply_topics(settings.model_copy(update={"partitions": settings.partitions + 1}))


def test_a_worker_does_not_run_on_missing_topics(settings: Settings) -> None:
    outcome = lapse("run", "--directory", str(settings.directory), settings=settings)
    assert outcome.code == 1
    assert f"{settings.prefix}activity does not exist" in outcome.err
    assert "lapse topics apply" in outcome.err


def test_more_replicas_than_brokers_is_told(settings: Settings) -> None:
    outcome = lapse("topics", "apply", "--replication", "9", settings=settings)
    assert outcome.code == 1
    assert "LAPSE_REPLICATION" in outcome.err
