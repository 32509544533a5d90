"""Is a topic as the contract says, and what would go wrong if not?

A topic with the wrong settings does not fail, it lies: with `CreateTime` every service's clock decides when sessions
end; with a short retention a revocation is forgotten while the session it ended could still be shown; with unequal
partition counts a subject's revocation lies where its sessions are not. So topics are compared with the catalogue
before anything runs, and what differs is refused with the topic, the setting, what was found and what to do. What to
change is told and never done: which of a wrong topic and a wrong setting is the mistake, only the operator knows.

What is compared, and what is left to the operator:

| what | wrong when |
| --- | --- |
| partitions | not the catalogue's, for the co-partitioned topics and the policies; others may have any number |
| message.timestamp.type | not the catalogue's |
| cleanup.policy | not the catalogue's, as a set |
| retention.ms | shorter than the catalogue's (longer keeps every promise), where something is deleted; for activity, |
|  | revocations and expiries any: their owners trim them by log time, a broker's clock must not |
| retention.bytes | any limit, where something is deleted: records would go before their time |
| max.message.bytes | smaller than the catalogue's |
| compression.type | not the catalogue's, for the topics that any client writes to |
| unclean.leader.election.enable | not the catalogue's |
| min.insync.replicas | below 2 with 3 replicas or more: what `acks=all` acknowledged could be lost with one broker |
| replicas | fewer than `replication`, where that is set; else left to the operator |
| segment.bytes and other tuning | never: it costs speed, not promises |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from lapse.pipeline.settings import Settings
from lapse.schemas import TopicNames, TopicSpec

__all__ = ["REPLICAS_SAFE", "FoundTopic", "TopicProblem", "compare", "topic_settings"]

# With three replicas, two must have a record before it is acknowledged: one broker may then be lost without losing it.
REPLICAS_SAFE: Final = 3
_IN_SYNC_SAFE: Final = 2

_MISSING: Final = "topic"


@dataclass(frozen=True, slots=True)
class TopicProblem:
    """One way in which one topic is not as the contract says.

    Attributes:
        topic: its full name.
        setting: `topic` (missing), `partitions`, `replication`, or the name of a Kafka topic setting.
        found, expected: the values, as Kafka writes them.
        why: what would go wrong.
        remedy: what to do.
    """

    topic: str
    setting: str
    found: str
    expected: str
    why: str
    remedy: str

    @property
    def is_missing(self) -> bool:
        """Return whether the topic is not there at all, which `lapse topics apply` puts right."""
        return self.setting == _MISSING

    def __str__(self) -> str:
        if self.is_missing:
            return f"{self.topic} does not exist: {self.remedy}"
        return f"{self.topic} has {self.setting} {self.found}, expected {self.expected}: {self.why}; {self.remedy}"


@dataclass(frozen=True, slots=True)
class FoundTopic:
    """A topic as the broker has it; `replicas`: of the partition that has the fewest."""

    partitions: int
    replicas: int
    config: Mapping[str, str]


def compare(specs: Iterable[TopicSpec], found: Mapping[str, FoundTopic], settings: Settings) -> list[TopicProblem]:
    """Return how the topics that were found differ from what the catalogue asks, in its order; missing ones too."""
    specs = tuple(specs)
    counts = {found[spec.name].partitions for spec in specs if spec.co_partitioned and spec.name in found}
    return [problem for spec in specs for problem in _problems(spec, found.get(spec.name), settings, counts)]


def _deletes(spec: TopicSpec) -> bool:
    return "delete" in spec.cleanup_policy


def topic_settings(spec: TopicSpec) -> dict[str, str]:
    """Return the Kafka topic settings that a topic is created with: a broker may have other defaults than Kafka's."""
    return spec.config | ({"retention.bytes": "-1"} if _deletes(spec) else {})


def _problems(spec: TopicSpec, found: FoundTopic | None, settings: Settings, counts: set[int]) -> list[TopicProblem]:
    """Return how a topic differs from what the catalogue asks; `counts`: of all co-partitioned topics that exist."""
    if found is None:
        remedy = "run `lapse topics apply`"
        return [TopicProblem(spec.name, _MISSING, "none", "one", "nothing can be read or written", remedy)]
    return [
        *_partition_problems(spec, found, settings, counts),
        *_replica_problems(spec, found, settings),
        *_config_problems(spec, found, settings),
    ]


def _partition_problems(spec: TopicSpec, found: FoundTopic, settings: Settings, counts: set[int]) -> list[TopicProblem]:
    if found.partitions == spec.partitions:
        return []
    names = TopicNames(settings.prefix)
    if spec.name == names.policies:
        why = "a policy's version is its offset in the one partition"
        remedy = "take another prefix (--prefix), or delete the topic and run `lapse topics apply`"
    elif spec.co_partitioned:
        why = "what belongs to one subject must have the same partition number in every topic"
        remedy = (
            f"set LAPSE_PARTITIONS={found.partitions}"
            if counts == {found.partitions}
            else "take another prefix (--prefix): adding partitions to a topic moves subjects away from their sessions"
        )
    elif spec.name in (names.violations, names.dead_letters) and found.partitions < spec.partitions:
        why = "a partition's owner reports to the same partition number, which would not be there"
        remedy = f"add partitions: kafka-topics.sh --alter --topic {spec.name} --partitions {spec.partitions}"
    else:
        return []
    return [TopicProblem(spec.name, "partitions", str(found.partitions), str(spec.partitions), why, remedy)]


def _replica_problems(spec: TopicSpec, found: FoundTopic, settings: Settings) -> list[TopicProblem]:
    if settings.replication is not None and found.replicas < settings.replication:
        return [
            TopicProblem(
                spec.name,
                "replication",
                str(found.replicas),
                str(settings.replication),
                "fewer brokers may be lost than the settings say",
                "add replicas with kafka-reassign-partitions.sh, or lower LAPSE_REPLICATION",
            )
        ]
    in_sync = found.config.get("min.insync.replicas", "1")
    if found.replicas >= REPLICAS_SAFE and int(in_sync) < _IN_SYNC_SAFE:
        why = "one lost broker could take acknowledged records with it"
        return [_config_problem(spec, "min.insync.replicas", in_sync, str(_IN_SYNC_SAFE), why, settings)]
    return []


# What goes wrong where a setting does not keep what the catalogue asks. Settings that are not here are tuning.
_WHY: Final = {
    "message.timestamp.type": "the clocks of the senders would decide when sessions end, not the log's",
    "cleanup.policy": "records would be kept or removed by another rule than their readers rely on",
    "retention.ms": "records would be removed while something still depends on them",
    "retention.bytes": "records would be removed while something still depends on them",
    "max.message.bytes": "the broker would refuse records that the writers may send",
    "compression.type": "a client could compress by what the workers cannot read, or to more than they can hold",
    "unclean.leader.election.enable": "a broker that lags could lead, and acknowledged records be lost",
}


def _config_problems(spec: TopicSpec, found: FoundTopic, settings: Settings) -> list[TopicProblem]:
    problems = []
    for setting, expected in topic_settings(spec).items():
        if setting not in _WHY or (setting == "retention.ms" and not _deletes(spec)):
            continue
        actual = found.config.get(setting, "")
        if not _keeps(setting, actual, expected):
            problems.append(_config_problem(spec, setting, actual, expected, _WHY[setting], settings))
    return problems


def _keeps(setting: str, actual: str, expected: str) -> bool:
    """Return whether a setting's value keeps what the expected one promises."""
    match setting:
        case "cleanup.policy":
            return set(actual.replace(" ", "").split(",")) == set(expected.replace(" ", "").split(","))
        case "retention.ms":
            # -1 keeps for ever.
            return actual == "-1" or (expected != "-1" and actual.isdecimal() and int(actual) >= int(expected))
        case "max.message.bytes":
            return actual.isdecimal() and int(actual) >= int(expected)
        case _:
            return actual == expected


def _config_problem(
    spec: TopicSpec, setting: str, found: str, expected: str, why: str, settings: Settings
) -> TopicProblem:
    # kafka-configs.sh takes a value with commas in brackets.
    value = f"[{expected}]" if "," in expected else expected
    remedy = (
        f"run kafka-configs.sh --bootstrap-server {settings.kafka} --alter --entity-type topics "
        f"--entity-name {spec.name} --add-config {setting}={value}"
    )
    if setting == "message.timestamp.type":
        remedy = f"take another prefix (--prefix), or, if the topic is still empty: {remedy}"
    return TopicProblem(spec.name, setting, found or "unset", expected, why, remedy)
