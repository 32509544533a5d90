"""Goal: a topic that would lie is refused, by name, with why and what to do; one that keeps every promise is not.

Method: topics as the catalogue asks, each made wrong in one way. No broker: the comparison is a function.
"""

from __future__ import annotations

import dataclasses

import pytest

from lapse.pipeline.operations.contract import FoundTopic, TopicProblem, compare, topic_settings
from lapse.pipeline.operations.topics import catalogue_of
from lapse.pipeline.settings import Settings
from lapse.schemas import TopicNames

SETTINGS = Settings(kafka="127.0.0.1:1", prefix="p.", partitions=8)
NAMES = TopicNames("p.")
DAY_MS = 86_400_000


def as_asked(settings: Settings = SETTINGS, brokers: int = 1) -> dict[str, FoundTopic]:
    """Return the topics as they are right after `lapse topics apply`."""
    return {
        spec.name: FoundTopic(spec.partitions, spec.replication, topic_settings(spec))
        for spec in catalogue_of(settings, brokers)
    }


def problems_of(found: dict[str, FoundTopic], settings: Settings = SETTINGS, brokers: int = 1) -> list[TopicProblem]:
    return compare(catalogue_of(settings, brokers), found, settings)


def with_config(topic: str, config: dict[str, str], brokers: int = 1) -> dict[str, FoundTopic]:
    """Return the topics as asked, but for some settings of one."""
    found = as_asked(brokers=brokers)
    found[topic] = dataclasses.replace(found[topic], config={**found[topic].config, **config})
    return found


def with_partitions(count: int, *topics: str) -> dict[str, FoundTopic]:
    found = as_asked()
    for topic in topics:
        found[topic] = dataclasses.replace(found[topic], partitions=count)
    return found


@pytest.mark.parametrize("brokers", [1, 3])
def test_topics_as_asked_have_no_problem(brokers: int) -> None:
    assert problems_of(as_asked(brokers=brokers), brokers=brokers) == []


def test_every_missing_topic_is_told() -> None:
    problems = problems_of({})
    assert [problem.topic for problem in problems] == list(as_asked())
    assert all(problem.is_missing and "lapse topics apply" in str(problem) for problem in problems)


@pytest.mark.parametrize("topic", list(as_asked()))
def test_a_topic_that_is_stamped_by_its_senders_is_refused(topic: str) -> None:
    [problem] = problems_of(with_config(topic, {"message.timestamp.type": "CreateTime"}))
    assert (problem.topic, problem.found, problem.expected) == (topic, "CreateTime", "LogAppendTime")
    assert "another prefix" in problem.remedy
    assert "kafka-configs.sh" in problem.remedy


@pytest.mark.parametrize(
    ("topic", "config", "found"),
    [
        (NAMES.revocations, {"retention.ms": str(30 * DAY_MS - 1)}, str(30 * DAY_MS - 1)),
        (NAMES.expiries, {"retention.ms": "3600000"}, "3600000"),
        (NAMES.activity, {"retention.ms": "3600000"}, "3600000"),
        (NAMES.revocations, {"retention.bytes": "1000000"}, "1000000"),
        (NAMES.policies, {"cleanup.policy": "delete"}, "delete"),
        (NAMES.expiries, {"cleanup.policy": "compact"}, "compact"),
        (NAMES.state, {"cleanup.policy": "compact,delete"}, "compact,delete"),
        (NAMES.activity, {"max.message.bytes": "1048588"}, "1048588"),
        (NAMES.activity, {"unclean.leader.election.enable": "true"}, "true"),
        (NAMES.revocations, {"compression.type": "producer"}, "producer"),
    ],
)
def test_a_setting_that_breaks_a_promise_is_refused(topic: str, config: dict[str, str], found: str) -> None:
    [problem] = problems_of(with_config(topic, config))
    assert problem.topic == topic
    assert problem.setting == next(iter(config))
    assert problem.found == found
    assert f"--entity-name {topic}" in problem.remedy


@pytest.mark.parametrize(
    ("topic", "config"),
    [
        (NAMES.violations, {"retention.ms": str(31 * DAY_MS)}),
        (NAMES.warnings, {"retention.ms": "-1"}),
        (NAMES.policies, {"retention.ms": "1000"}),  # only compacted: nothing is deleted for its age
        (NAMES.expiries, {"cleanup.policy": "delete,compact"}),
        (NAMES.activity, {"max.message.bytes": "20000000"}),
        (NAMES.state, {"segment.bytes": "1073741824", "min.cleanable.dirty.ratio": "0.5"}),
    ],
)
def test_a_setting_that_keeps_the_promise_is_not_refused(topic: str, config: dict[str, str]) -> None:
    assert problems_of(with_config(topic, config)) == []


def test_a_partition_count_of_its_own_is_refused_and_not_to_be_followed() -> None:
    [problem] = problems_of(with_partitions(12, NAMES.revocations))
    assert (problem.topic, problem.setting, problem.found, problem.expected) == (
        NAMES.revocations,
        "partitions",
        "12",
        "8",
    )
    assert "another prefix" in problem.remedy


def test_equal_counts_that_are_not_the_settings_say_which_setting_is_meant() -> None:
    together = [NAMES.activity, NAMES.revocations, NAMES.expiries, NAMES.warnings, NAMES.state]
    problems = problems_of(with_partitions(12, *together))
    assert [problem.topic for problem in problems] == together
    assert {problem.remedy for problem in problems} == {"set LAPSE_PARTITIONS=12"}


def test_policies_have_one_partition() -> None:
    [problem] = problems_of(with_partitions(8, NAMES.policies))
    assert (problem.topic, problem.expected) == (NAMES.policies, "1")


def test_topics_that_nothing_places_may_have_any_count() -> None:
    assert problems_of(with_partitions(3, NAMES.enforcement)) == []
    assert problems_of(with_partitions(9, NAMES.violations, NAMES.dead_letters)) == []


@pytest.mark.parametrize("topic", [NAMES.violations, NAMES.dead_letters])
def test_what_owners_report_to_needs_a_partition_for_each_of_them(topic: str) -> None:
    [problem] = problems_of(with_partitions(3, topic))
    assert (problem.topic, problem.setting, problem.found, problem.expected) == (topic, "partitions", "3", "8")
    assert "--alter" in problem.remedy


def test_fewer_replicas_than_was_asked_for_are_refused() -> None:
    asked = Settings(kafka="127.0.0.1:1", prefix="p.", replication=3)
    problems = problems_of(as_asked(), asked, brokers=3)
    assert {problem.setting for problem in problems} == {"replication"}


def test_a_cluster_that_has_grown_does_not_stop_the_workers() -> None:
    # Nobody asked for three replicas; that one more broker came does not make the topics wrong.
    assert problems_of(as_asked(brokers=1), brokers=3) == []


def test_replicas_that_need_not_be_in_sync_are_refused() -> None:
    [problem] = problems_of(with_config(NAMES.revocations, {"min.insync.replicas": "1"}, brokers=3), brokers=3)
    assert (problem.setting, problem.expected) == ("min.insync.replicas", "2")
