"""Which topics are there, and how must each be set up?

`catalogue` is the one list that `lapse topics apply`, the demo, the tests and the AsyncAPI document go by.

Activity, revocations, expiries, warnings and state are co-partitioned: the same count, and what belongs to a subject
has the same partition number in all. Every topic is stamped by the broker (LogAppendTime): in the input topics it is
the clock that decides, in the others what lateness and propagation are measured from.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from lapse.schemas.errors import ConfigError

__all__ = ["CleanupPolicy", "TopicNames", "TopicSpec", "catalogue"]

CleanupPolicy = Literal["delete", "compact", "compact,delete"]

_DAY_MS: Final = 86_400_000
_ACTIVITY_RETENTION_MS: Final = 7 * _DAY_MS
_WARNINGS_RETENTION_MS: Final = _DAY_MS
_ENFORCEMENT_RETENTION_MS: Final = 7 * _DAY_MS
_COMPLAINTS_RETENTION_MS: Final = 30 * _DAY_MS

# 64 records of RECORD_BYTES_MAX: a client batches that much, and a value far too large still reaches the dead letters
# by name. A limit near RECORD_BYTES_MAX would refuse whole batches at the broker, where only the writer hears of it.
_INPUT_MESSAGE_BYTES_MAX: Final = 4_194_304
# Who writes to an input topic may compress by any codec; whoever reads it would need them all (aiokafka has only gzip
# by itself and fails on the others, measured: one service with snappy stopped the worker for good), and a batch of
# 4 MiB can unpack to gigabytes. So the broker unpacks, and refuses what is then over max.message.bytes (measured: 50 MB
# under each codec). It costs disk: a touch takes 151 bytes against 44 under lz4, in a packed record 48 against 30.
_INPUT_COMPRESSION: Final = "uncompressed"
# A state record holds 64 sessions, each of at most one activity record (64 KiB): 4 MiB, and as much again for keys.
_STATE_MESSAGE_BYTES_MAX: Final = 8_388_608
# The state topic is read whole at each start: small segments and a low dirty ratio keep it near the size of the state.
_STATE_SEGMENT_BYTES: Final = 67_108_864

_PREFIX: Final = re.compile(r"[A-Za-z0-9._-]{0,200}")


@dataclass(frozen=True, slots=True)
class TopicNames:
    """The names of the topics under a prefix.

    Raises:
        ConfigError: the prefix has characters that Kafka takes in no topic's name, or is over 200 long.
    """

    prefix: str = "lapse."

    def __post_init__(self) -> None:
        if _PREFIX.fullmatch(self.prefix) is None:
            raise ConfigError(f"prefix is {self.prefix!r}: at most 200 of A-Z a-z 0-9 . _ - are allowed")

    @property
    def activity(self) -> str:
        return f"{self.prefix}activity"

    @property
    def revocations(self) -> str:
        return f"{self.prefix}revocations"

    @property
    def policies(self) -> str:
        return f"{self.prefix}policies"

    @property
    def expiries(self) -> str:
        return f"{self.prefix}expiries"

    @property
    def warnings(self) -> str:
        return f"{self.prefix}warnings"

    @property
    def state(self) -> str:
        return f"{self.prefix}state"

    @property
    def enforcement(self) -> str:
        return f"{self.prefix}enforcement"

    @property
    def violations(self) -> str:
        return f"{self.prefix}violations"

    @property
    def dead_letters(self) -> str:
        return f"{self.prefix}dead-letters"


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """How a topic must be set up.

    Attributes:
        retention_ms: after which age the broker deletes, by its own clock; None: it deletes nothing for its age.
        trimmed_after_ms: after which age, by log time, the partition's owner deletes (processor/trimming.py). For the
            topics that decisions rest on: a broker whose clock is set eight days forward must not empty them.
        key: what its records' keys are, in words.
        co_partitioned: whether its partition count must equal the activity topic's.
        extra: further Kafka settings; those a topic must have are all in `config`.
    """

    name: str
    cleanup_policy: CleanupPolicy
    retention_ms: int | None
    timestamp_type: Literal["LogAppendTime", "CreateTime"]
    partitions: int
    replication: int
    key: str
    written_by: str
    what: str
    co_partitioned: bool = False
    trimmed_after_ms: int | None = None
    extra: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def config(self) -> dict[str, str]:
        """Return all Kafka settings of the topic, as its admin protocol takes them."""
        return {
            "cleanup.policy": self.cleanup_policy,
            "retention.ms": "-1" if self.retention_ms is None else str(self.retention_ms),
            "message.timestamp.type": self.timestamp_type,
            # One broker lost must neither stop writes nor lose acknowledged ones: 2 of 3.
            "min.insync.replicas": "2" if self.replication >= 3 else "1",
            "unclean.leader.election.enable": "false",
            **self.extra,
        }


def catalogue(
    names: TopicNames, *, partitions: int, replication: int, session_life_max_ms: int
) -> tuple[TopicSpec, ...]:
    """Return the topics in the order in which they are to be created.

    Args:
        partitions: of all topics but policies, which has one.
        replication: replicas of each partition.
        session_life_max_ms: the longest session life; revocations are kept so long, and endings a day longer.

    Raises:
        ConfigError: a number below 1.
    """
    _refuse_below_one(partitions=partitions, replication=replication, session_life_max_ms=session_life_max_ms)

    def spec(
        name: str,
        cleanup_policy: CleanupPolicy,
        retention_ms: int | None,
        *,
        key: str,
        written_by: str,
        what: str,
        count: int = partitions,
        co_partitioned: bool = False,
        trimmed_after_ms: int | None = None,
        extra: dict[str, str] | None = None,
    ) -> TopicSpec:
        return TopicSpec(
            name=name,
            cleanup_policy=cleanup_policy,
            retention_ms=retention_ms,
            timestamp_type="LogAppendTime",
            partitions=count,
            replication=replication,
            key=key,
            written_by=written_by,
            what=what,
            co_partitioned=co_partitioned,
            trimmed_after_ms=trimmed_after_ms,
            extra=MappingProxyType(extra or {}),
        )

    any_client = {"max.message.bytes": str(_INPUT_MESSAGE_BYTES_MAX), "compression.type": _INPUT_COMPRESSION}
    compacted_state = {
        "max.message.bytes": str(_STATE_MESSAGE_BYTES_MAX),
        "segment.bytes": str(_STATE_SEGMENT_BYTES),
        "min.cleanable.dirty.ratio": "0.2",
    }
    return (
        spec(
            names.activity,
            "delete",
            None,
            trimmed_after_ms=_ACTIVITY_RETENTION_MS,
            key="`tenant/subject`, or `subject` without a tenant; null for packed touches and control records",
            written_by="services; the partition's owner (control records)",
            what="the log that decides",
            co_partitioned=True,
            extra=any_client,
        ),
        spec(
            names.revocations,
            "delete",
            None,
            trimmed_after_ms=session_life_max_ms,
            key="`tenant/subject`, or `subject` without a tenant; null where there is no subject (all partitions)",
            written_by="operators, identity provider, bridges",
            what="revocations",
            co_partitioned=True,
            extra=any_client,
        ),
        spec(
            names.policies,
            "compact",
            None,
            key="the policy's name",
            written_by="operators",
            what="policies",
            count=1,
            extra=any_client,
        ),
        spec(
            names.expiries,
            "compact,delete",
            None,
            trimmed_after_ms=session_life_max_ms + _DAY_MS,  # denials may outlast it by age_max_ms, a day at most
            key="the session's reference; `watermark` for watermarks",
            written_by="processor",
            what="endings, watermarks",
            co_partitioned=True,
        ),
        spec(
            names.warnings,
            "delete",
            _WARNINGS_RETENTION_MS,
            key="the session's reference",
            written_by="processor",
            what="sessions about to end",
            co_partitioned=True,
        ),
        spec(
            names.state,
            "compact",
            None,
            key="the engine's own; `m` for the marker",
            written_by="processor",
            what="the session table's changelog (binary, private to the processor)",
            co_partitioned=True,
            extra=compacted_state,
        ),
        spec(
            names.enforcement,
            "compact,delete",
            _ENFORCEMENT_RETENTION_MS,
            key="`service/instance`, and `service/instance/revocation` for guard.applied",
            written_by="guards, appliers",
            what="what each guard has applied, and how fast",
        ),
        spec(
            names.violations,
            "delete",
            _COMPLAINTS_RETENTION_MS,
            key="the session's reference",
            written_by="processor",
            what="activity accepted after the session's end (an unguarded service)",
        ),
        spec(
            names.dead_letters,
            "delete",
            _COMPLAINTS_RETENTION_MS,
            key="`topic/partition/offset` of the refused record",
            written_by="processor, guards, appliers",
            what="what could not be read, with the reason",
        ),
    )


def _refuse_below_one(**settings: int) -> None:
    for setting, value in settings.items():
        if value < 1:
            raise ConfigError(f"{setting} is {value}: at least 1 is needed")
