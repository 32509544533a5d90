"""Which policies are in force, and how does an operator set one?

The topic `policies` has one partition and is compacted by name; a policy's version is its record's offset, so versions
rise, and the last record of a name is the one in force. `default` is always there: until one is set, the built-in.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from lapse.pipeline.operations.connection import append, producing, require_topics
from lapse.pipeline.operations.reading import read_to_end
from lapse.pipeline.settings import Settings
from lapse.schemas import DEFAULT_POLICY, BadRecord, Policy, TopicNames, encode, parse_policy
from lapse.schemas.errors import ConfigError

__all__ = ["PolicyInForce", "read_policies", "refuse_senseless", "set_policy"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PolicyInForce:
    """A policy as the topic has it.

    Attributes:
        version: its record's offset; None for the built-in `default`.
        set_at: its append time, epoch ms of the broker's clock; None for the built-in.
    """

    policy: Policy
    version: int | None
    set_at: int | None


async def read_policies(settings: Settings) -> dict[str, PolicyInForce]:
    """Return the policies in force by name, in the order of their names; `default` is always among them.

    A record that cannot be read is logged and left out, as the processor leaves it out.

    Raises:
        ConfigError: the topic does not exist.
        RuntimeFault: no broker answers, or it stopped answering before the end.
    """
    topic = TopicNames(settings.prefix).policies
    found = {DEFAULT_POLICY.name: PolicyInForce(DEFAULT_POLICY, None, None)}
    for record in await read_to_end(settings, topic):
        try:
            policy = parse_policy(record.value)
        except BadRecord as bad:
            _log.warning("%s, offset %d, is not a policy: %s", topic, record.offset, bad.reason)
            continue
        found[policy.name] = PolicyInForce(policy, record.offset, record.timestamp)
    return dict(sorted(found.items()))


async def set_policy(settings: Settings, policy: Policy) -> int:
    """Write a policy and return its version; it applies to live sessions once the workers have copied it.

    Raises:
        ConfigError: the topic does not exist, or the policy makes no sense (see `refuse_senseless`).
        BadRecord: it would be too large to be read.
        RuntimeFault: no broker answers, or it did not take the record.
    """
    refuse_senseless(policy, settings)
    topic = TopicNames(settings.prefix).policies
    await require_topics(settings, [topic])
    async with producing(settings) as producer:
        written = await append(producer, topic, 0, encode(policy), policy.name.encode())
        version: int = written.offset
        return version


def refuse_senseless(policy: Policy, settings: Settings) -> None:
    """Refuse what the wire allows and nobody can mean.

    Raises:
        ConfigError: an absolute limit or token life above `session_life_max_ms` (revocations and endings are
            forgotten after it, so such a session or token could outlive one); or a warning as early as the limit it
            warns of.
    """
    for name, life_ms in (("absolute_ms", policy.absolute_ms), ("token_life_ms", policy.token_life_ms)):
        if life_ms is not None and life_ms > settings.session_life_max_ms:
            raise ConfigError(
                f"{name}={life_ms} is above session_life_max_ms={settings.session_life_max_ms}, for which revocations "
                "and endings are kept: set LAPSE_SESSION_LIFE_MAX_MS higher for everybody first, or choose a lower one"
            )
    limits = [limit for limit in (policy.idle_ms, policy.absolute_ms) if limit is not None]
    if policy.warn_before_ms is not None and limits and policy.warn_before_ms >= min(limits):
        raise ConfigError(
            f"warn_before_ms={policy.warn_before_ms} must be below the shorter limit, {min(limits)}: every activity "
            "would be answered by a warning"
        )
