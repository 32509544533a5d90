"""How do the topics come to be, and are they still as the contract says?

What exists is compared (`lapse.pipeline.operations.contract`) and never changed; what is missing is created.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import InvalidReplicationFactorError, TopicAlreadyExistsError, UnknownTopicOrPartitionError

from lapse.pipeline.operations.connection import administering, describe_topics, raise_for
from lapse.pipeline.operations.contract import REPLICAS_SAFE, FoundTopic, TopicProblem, compare, topic_settings
from lapse.pipeline.settings import Settings
from lapse.schemas import TopicNames, TopicSpec, catalogue
from lapse.schemas.errors import ConfigError, RuntimeFault

__all__ = ["TopicProblem", "WrongTopics", "apply_topics", "catalogue_of", "check_topics"]

# Kafka announces a new topic's leaders within a second; on a laptop that is starting other things, within a few.
_VISIBLE_TIMEOUT_S: Final = 30.0
_VISIBLE_POLL_S: Final = 0.05


class WrongTopics(ConfigError):
    """The topics are not as the contract says; `problems` has each of them."""

    def __init__(self, problems: Iterable[TopicProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, self.problems)))


def catalogue_of(settings: Settings, brokers: int) -> tuple[TopicSpec, ...]:
    """Return the topics that these settings ask for on a cluster of so many brokers."""
    return catalogue(
        TopicNames(settings.prefix),
        partitions=settings.partitions,
        replication=settings.replication or (1 if brokers == 1 else REPLICAS_SAFE),
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
        wrong = [problem for problem in problems if not problem.is_missing]
        if wrong:
            raise WrongTopics(wrong)
        missing = {problem.topic for problem in problems}
        specs = [spec for spec in catalogue_of(settings, await _brokers(admin)) if spec.name in missing]
        created = await _create(admin, specs, settings)
        if specs:
            await _wait_until_usable(admin, specs)
            # Whoever else made one of them in between may have made it otherwise.
            if problems := await _check_made(admin, settings):
                raise WrongTopics(problems)
    return created


async def _check(admin: AIOKafkaAdminClient, settings: Settings) -> list[TopicProblem]:
    specs = catalogue_of(settings, await _brokers(admin))
    found = await _find(admin, [spec.name for spec in specs])
    return compare(specs, found, settings)


async def _check_made(admin: AIOKafkaAdminClient, settings: Settings) -> list[TopicProblem]:
    """Check topics that have just been made. Any broker may be asked, and some hear of them later."""
    deadline = asyncio.get_running_loop().time() + _VISIBLE_TIMEOUT_S
    while True:
        problems = await _check(admin, settings)
        late = any(problem.is_missing for problem in problems) and asyncio.get_running_loop().time() < deadline
        if not late:
            return problems
        await asyncio.sleep(_VISIBLE_POLL_S)


async def _brokers(admin: AIOKafkaAdminClient) -> int:
    return len((await admin.describe_cluster())["brokers"])


async def _find(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, FoundTopic]:
    """Return those of the topics that exist."""
    topics = await describe_topics(admin)
    present = [name for name in names if name in topics]
    if not present:
        return {}
    responses = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in present])
    configs: dict[str, dict[str, str]] = {}
    for response in responses:
        for code, message, _, name, entries in response.resources:
            if code == UnknownTopicOrPartitionError.errno:
                continue  # this broker has not heard of it yet, or it was deleted since
            raise_for(code, message, f"the settings of {name} cannot be read")
            configs[name] = {entry[0]: entry[1] for entry in entries}
    return {
        name: FoundTopic(
            partitions=len(topics[name]["partitions"]),
            replicas=min(len(partition["replicas"]) for partition in topics[name]["partitions"]),
            config=configs[name],
        )
        for name in configs
    }


async def _create(admin: AIOKafkaAdminClient, specs: list[TopicSpec], settings: Settings) -> tuple[str, ...]:
    if not specs:
        return ()
    response = await admin.create_topics(
        [NewTopic(spec.name, spec.partitions, spec.replication, topic_configs=topic_settings(spec)) for spec in specs]
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
