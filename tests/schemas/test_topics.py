"""Goal: the catalogue is DESIGN.md section 3's table, in settings that Kafka takes.

Method: the table, written out again here, against the catalogue.
"""

import pytest

from lapse.schemas import ConfigError, TopicNames, TopicSpec, catalogue

DAY_MS = 24 * 3_600_000
LIFE_MS = 30 * DAY_MS

TABLE = {
    "lapse.activity": ("delete", None, 7 * DAY_MS),
    "lapse.revocations": ("delete", None, LIFE_MS),
    "lapse.policies": ("compact", None, None),
    "lapse.expiries": ("compact,delete", None, LIFE_MS + DAY_MS),
    "lapse.warnings": ("delete", DAY_MS, None),
    "lapse.state": ("compact", None, None),
    "lapse.enforcement": ("compact,delete", 7 * DAY_MS, None),
    "lapse.violations": ("delete", 30 * DAY_MS, None),
    "lapse.dead-letters": ("delete", 30 * DAY_MS, None),
}


def topics(
    prefix: str = "lapse.", *, partitions: int = 8, replication: int = 1, session_life_max_ms: int = LIFE_MS
) -> dict[str, TopicSpec]:
    specs = catalogue(
        TopicNames(prefix), partitions=partitions, replication=replication, session_life_max_ms=session_life_max_ms
    )
    assert len({spec.name for spec in specs}) == len(specs)
    return {spec.name: spec for spec in specs}


def test_every_topic_is_there_with_its_cleanup_and_retention() -> None:
    found = {name: (spec.cleanup_policy, spec.retention_ms, spec.trimmed_after_ms) for name, spec in topics().items()}
    assert found == TABLE


def test_input_topics_are_stamped_by_the_broker() -> None:
    for name in ("lapse.activity", "lapse.revocations", "lapse.policies"):
        spec = topics()[name]
        assert spec.timestamp_type == "LogAppendTime"
        assert spec.config["message.timestamp.type"] == "LogAppendTime"


def test_lateness_is_measured_from_the_brokers_stamp_of_endings() -> None:
    assert topics()["lapse.expiries"].timestamp_type == "LogAppendTime"


def test_what_belongs_to_a_subject_is_co_partitioned() -> None:
    found = {name for name, spec in topics(partitions=5).items() if spec.co_partitioned}
    assert found == {"lapse.activity", "lapse.revocations", "lapse.expiries", "lapse.warnings", "lapse.state"}
    assert {spec.partitions for spec in topics(partitions=5).values() if spec.co_partitioned} == {5}


def test_policies_have_one_partition_however_many_the_others_have() -> None:
    assert topics(partitions=64)["lapse.policies"].partitions == 1


def test_revocations_and_endings_are_kept_for_the_longest_session_life() -> None:
    specs = topics(session_life_max_ms=90 * DAY_MS)
    assert specs["lapse.revocations"].trimmed_after_ms == 90 * DAY_MS
    assert specs["lapse.expiries"].trimmed_after_ms == 91 * DAY_MS, "denials may outlast the session life by age_max_ms"


def test_no_brokers_clock_empties_what_decisions_rest_on() -> None:
    for name in ("lapse.activity", "lapse.revocations", "lapse.expiries"):
        assert topics()[name].config["retention.ms"] == "-1"


def test_compacted_topics_delete_nothing_for_its_age() -> None:
    assert topics()["lapse.state"].config["retention.ms"] == "-1"
    assert topics()["lapse.policies"].config["retention.ms"] == "-1"


def test_value_far_too_large_still_reaches_the_log_that_dead_letters_it() -> None:
    assert int(topics()["lapse.activity"].config["max.message.bytes"]) > 2_097_152 + 1_024


def test_a_clients_compression_never_reaches_those_who_read_its_topic() -> None:
    unpacked = {name for name, spec in topics().items() if spec.config.get("compression.type") == "uncompressed"}
    assert unpacked == {"lapse.activity", "lapse.revocations", "lapse.policies"}


@pytest.mark.parametrize(("replication", "in_sync"), [(1, "1"), (2, "1"), (3, "2"), (5, "2")])
def test_acknowledged_writes_are_on_two_of_three_brokers(replication: int, in_sync: str) -> None:
    for spec in topics(replication=replication).values():
        assert spec.replication == replication
        assert spec.config["min.insync.replicas"] == in_sync
        assert spec.config["unclean.leader.election.enable"] == "false"


def test_every_topic_says_what_it_is_for() -> None:
    for spec in topics().values():
        assert spec.key
        assert spec.written_by
        assert spec.what
        assert all(type(value) is str for value in spec.config.values())


def test_prefix_stands_before_every_name() -> None:
    assert set(topics("eu.prod-")) == {name.replace("lapse.", "eu.prod-") for name in TABLE}
    assert set(topics("")) == {name.removeprefix("lapse.") for name in TABLE}


@pytest.mark.parametrize("prefix", ["a/b", "ä.", "a b", "x" * 201, "a\n"])
def test_prefix_that_kafka_refuses_is_refused_by_name(prefix: str) -> None:
    with pytest.raises(ConfigError, match="prefix"):
        TopicNames(prefix)


@pytest.mark.parametrize("setting", ["partitions", "replication", "session_life_max_ms"])
@pytest.mark.parametrize("value", [0, -1])
def test_number_below_one_is_refused_by_name(setting: str, value: int) -> None:
    numbers = {"partitions": 8, "replication": 1, "session_life_max_ms": LIFE_MS, setting: value}
    with pytest.raises(ConfigError, match=f"{setting} is {value}"):
        catalogue(TopicNames(), **numbers)
