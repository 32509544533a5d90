"""Are the topics as the contract says, and how do they come to be?

A topic with the wrong settings does not fail, it lies: with `CreateTime` every service's clock decides when sessions
end; with a short retention a revocation is forgotten while the session it ended could still be shown; with unequal
partition counts a subject's revocation lies where its sessions are not. So topics are compared with the catalogue
before anything runs, and what differs is refused with the topic, the setting, what was found and what to do. Nothing
that exists is ever changed here: which of a wrong topic and a wrong setting is the mistake, only the operator knows.

What is compared, and what is left to the operator:

| what | wrong when |
| --- | --- |
| partitions | not the catalogue's, for the co-partitioned topics and the policies; others may have any number |
| message.timestamp.type | not the catalogue's |
| cleanup.policy | not the catalogue's, as a set |
| retention.ms | shorter than the catalogue's (longer keeps every promise), where something is deleted |
| retention.bytes | any limit, where something is deleted: records would go before their time |
| max.message.bytes | smaller than the catalogue's |
| unclean.leader.election.enable | not the catalogue's |
| min.insync.replicas | below 2 with 3 replicas or more: what `acks=all` acknowledged could be lost with one broker |
| replicas | fewer than `replication`, where that is set; else left to the operator |
| segment.bytes and other tuning | never: it costs speed, not promises |
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import InvalidReplicationFactorError, TopicAlreadyExistsError

from lapse.pipeline.operations.connection import administering, describe_topics, raise_for
from lapse.pipeline.settings import Settings
from lapse.schemas import TopicNames, TopicSpec, catalogue
from lapse.schemas.errors import ConfigError, RuntimeFault

__all__ = ["TopicProblem", "WrongTopics", "apply_topics", "catalogue_of", "check_topics"]

# Kafka announces a new topic's leaders within a second; on a laptop that is starting other things, within a few.
_VISIBLE_TIMEOUT_S: Final = 30.0
_VISIBLE_POLL_S: Final = 0.05

# With three replicas, two must have a record before it is acknowledged: one broker may then be lost without losing it.
_REPLICAS_SAFE: Final = 3
_IN_SYNC_SAFE: Final = 2


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

    def __str__(self) -> str:
        if self.setting == "topic":
            return f"{self.topic} does not exist: {self.remedy}"
        return f"{self.topic} has {self.setting} {self.found}, expected {self.expected}: {self.why}; {self.remedy}"


class WrongTopics(ConfigError):
    """The topics are not as the contract says; `problems` has each of them."""

    def __init__(self, problems: Iterable[TopicProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, self.problems)))


@dataclass(frozen=True, slots=True)
class _Found:
    """A topic as the broker has it."""

    partitions: int
    replicas: int
    config: Mapping[str, str]


def catalogue_of(settings: Settings, brokers: int) -> tuple[TopicSpec, ...]:
    """Return the topics that these settings ask for on a cluster of so many brokers."""
    return catalogue(
        TopicNames(settings.prefix),
        partitions=settings.partitions,
        replication=settings.replication or (1 if brokers == 1 else _REPLICAS_SAFE),
        session_life_max_ms=settings.session_life_max_ms,
    )


async def check_topics(settings: Settings) -> list[TopicProblem]:
    """Return what is wrong with the topics, missing ones included; empty if a worker may run on them.

    Raises:
        RuntimeFault: no broker answers.
    """
    async with administering(settings) as admin:
        return await _check(admin, settings)


async def apply_topics(settings: Settings) -> tuple[str, ...]:
    """Create the topics that are missing and return their names, usable at once; check the ones that exist.

    If one that exists is wrong, nothing is created. Several may apply at once: who comes second finds the topics there.

    Raises:
        WrongTopics: a topic exists with other settings; each is named, with what to do.
        ConfigError: the cluster cannot hold so many replicas.
        RuntimeFault: no broker answers, or it refuses to make them.
    """
    async with administering(settings) as admin:
        problems = await _check(admin, settings)
        wrong = [problem for problem in problems if problem.setting != "topic"]
        if wrong:
            raise WrongTopics(wrong)
        missing = {problem.topic for problem in problems}
        specs = [spec for spec in catalogue_of(settings, await _brokers(admin)) if spec.name in missing]
        created = await _create(admin, specs, settings)
        if specs:
            await _wait_until_usable(admin, specs)
            # Whoever else made one of them in between may have made it otherwise.
            if problems := await _check(admin, settings):
                raise WrongTopics(problems)
    return created


async def _check(admin: AIOKafkaAdminClient, settings: Settings) -> list[TopicProblem]:
    specs = catalogue_of(settings, await _brokers(admin))
    found = await _find(admin, [spec.name for spec in specs])
    counts = {found[spec.name].partitions for spec in specs if spec.co_partitioned and spec.name in found}
    return [problem for spec in specs for problem in _problems(spec, found.get(spec.name), settings, counts)]


async def _brokers(admin: AIOKafkaAdminClient) -> int:
    return len((await admin.describe_cluster())["brokers"])


async def _find(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, _Found]:
    """Return those of the topics that exist."""
    topics = await describe_topics(admin)
    present = [name for name in names if name in topics]
    if not present:
        return {}
    responses = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in present])
    configs: dict[str, dict[str, str]] = {}
    for response in responses:
        for code, message, _, name, entries in response.resources:
            raise_for(code, message, f"the settings of {name} cannot be read")
            configs[name] = {entry[0]: entry[1] for entry in entries}
    return {
        name: _Found(
            partitions=len(topics[name]["partitions"]),
            replicas=min(len(partition["replicas"]) for partition in topics[name]["partitions"]),
            config=configs[name],
        )
        for name in present
    }


def _deletes(spec: TopicSpec) -> bool:
    return "delete" in spec.cleanup_policy


def _settings_of(spec: TopicSpec) -> dict[str, str]:
    """Return the Kafka topic settings that a topic is created with: a broker may have other defaults than Kafka's."""
    return spec.config | ({"retention.bytes": "-1"} if _deletes(spec) else {})


def _problems(spec: TopicSpec, found: _Found | None, settings: Settings, counts: set[int]) -> list[TopicProblem]:
    """Return how a topic differs from what the catalogue asks; `counts`: of all co-partitioned topics that exist."""
    if found is None:
        return [
            TopicProblem(
                spec.name, "topic", "none", "one", "nothing can be read or written", "run `lapse topics apply`"
            )
        ]
    return [
        *_partition_problems(spec, found, settings, counts),
        *_replica_problems(spec, found, settings),
        *_config_problems(spec, found, settings),
    ]


def _partition_problems(spec: TopicSpec, found: _Found, settings: Settings, counts: set[int]) -> list[TopicProblem]:
    if found.partitions == spec.partitions:
        return []
    if spec.name == TopicNames(settings.prefix).policies:
        why = "a policy's version is its offset in the one partition"
        remedy = "take another prefix (--prefix), or delete the topic and run `lapse topics apply`"
    elif spec.co_partitioned:
        why = "what belongs to one subject must have the same partition number in every topic"
        remedy = (
            f"set LAPSE_PARTITIONS={found.partitions}"
            if counts == {found.partitions}
            else "take another prefix (--prefix): adding partitions to a topic moves subjects away from their sessions"
        )
    else:
        return []
    return [TopicProblem(spec.name, "partitions", str(found.partitions), str(spec.partitions), why, remedy)]


def _replica_problems(spec: TopicSpec, found: _Found, settings: Settings) -> list[TopicProblem]:
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
    if found.replicas >= _REPLICAS_SAFE and int(in_sync) < _IN_SYNC_SAFE:
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
    "unclean.leader.election.enable": "a broker that lags could lead, and acknowledged records be lost",
}


def _config_problems(spec: TopicSpec, found: _Found, settings: Settings) -> list[TopicProblem]:
    problems = []
    for setting, expected in _settings_of(spec).items():
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


async def _create(admin: AIOKafkaAdminClient, specs: list[TopicSpec], settings: Settings) -> tuple[str, ...]:
    if not specs:
        return ()
    response = await admin.create_topics(
        [NewTopic(spec.name, spec.partitions, spec.replication, topic_configs=_settings_of(spec)) for spec in specs]
    )
    created = []
    for name, code, *rest in response.topic_errors:
        if code == TopicAlreadyExistsError.errno:
            continue
        if code == InvalidReplicationFactorError.errno:
            raise ConfigError(
                f"{name} cannot have {specs[0].replication} replicas at {settings.kafka}: set LAPSE_REPLICATION to "
                "what the cluster can hold"
            )
        raise_for(code, rest[0] if rest else None, f"{name} cannot be created at {settings.kafka}")
        created.append(name)
    return tuple(created)


async def _wait_until_usable(admin: AIOKafkaAdminClient, specs: list[TopicSpec]) -> None:
    """Wait until every partition has a leader, as the broker that is asked sees it."""
    deadline = asyncio.get_running_loop().time() + _VISIBLE_TIMEOUT_S
    while True:
        topics: dict[str, Any] = await describe_topics(admin)
        waiting = [spec.name for spec in specs if not _is_usable(topics.get(spec.name), spec)]
        if not waiting:
            return
        if asyncio.get_running_loop().time() > deadline:
            raise RuntimeFault(
                f"{', '.join(waiting)}: created, but without a leader after {_VISIBLE_TIMEOUT_S:.0f} s; "
                "look at the broker's log"
            )
        await asyncio.sleep(_VISIBLE_POLL_S)


def _is_usable(topic: dict[str, Any] | None, spec: TopicSpec) -> bool:
    if topic is None or len(topic["partitions"]) < spec.partitions:
        return False
    return all(partition["leader"] >= 0 and not partition["error_code"] for partition in topic["partitions"])
