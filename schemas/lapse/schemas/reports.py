"""What do guards report, and what does the processor complain of?

The records of `lapse.enforcement`, `lapse.violations` and `lapse.dead-letters`.
"""

import base64
from typing import Annotated, Literal

from pydantic import Field

from lapse.schemas.fields import (
    Duration,
    Instant,
    Name,
    Offset,
    Partition,
    Record,
    Service,
    SessionRef,
    Subject,
    Tenant,
    Value,
)
from lapse.schemas.limits import DEAD_LETTER_VALUE_BYTES_MAX, INT64_MAX, REASON_LENGTH_MAX

__all__ = ["DeadLetter", "GuardApplied", "GuardStatus", "PropagationMs", "Violation"]

Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Instance = Annotated[Name, Field(description="The process of the service, such as its host or pod.")]
OffsetOrNone = Annotated[int, Field(ge=-1, le=INT64_MAX)]


class PropagationMs(Value):
    """Percentiles of the time from a record's append to its being refused here. Fractions are welcome."""

    p50: Milliseconds
    p99: Milliseconds


class GuardStatus(Record):
    """How a guard is: once a second."""

    type: Literal["guard.status"] = "guard.status"
    service: Service
    instance: Instance
    version: Annotated[Name, Field(description="Of the SDK.")]
    applied: Annotated[
        dict[Name, list[OffsetOrNone]],
        Field(description="By topic (expiries, revocations): the last offset applied of each partition, -1 for none."),
    ]
    stale_ms: Annotated[Duration, Field(description="How old its knowledge is, its worst partition's.")]
    entries: Annotated[Duration, Field(description="Denials and cutoffs it keeps.")]
    checks: Annotated[Duration, Field(description="Questions answered since its start.")]
    refused: Annotated[Duration, Field(description="Of these, refused.")]
    allowed_while_stale: Annotated[Duration, Field(description="Of these, let pass while stale.")]
    propagation_ms: Annotated[PropagationMs | None, Field(description="null: nothing has come yet.")] = None
    clock_offset_ms: Annotated[
        float | None,
        Field(
            allow_inf_nan=False,
            description="The broker's clock minus this machine's, estimated; null: not known yet. Propagation is "
            "measured on the broker's clock as estimated here.",
        ),
    ] = None
    stale_after_ms: Annotated[
        Duration | None,
        Field(description="At which stale_ms it counts itself stale; null: not said, or it decides nothing by it."),
    ] = None
    on_stale: Annotated[
        Literal["allow", "deny"] | None,
        Field(
            description="What it does, while stale, with sessions it knows no ending of (a route may differ); "
            "null: not said, or it has nobody to refuse."
        ),
    ] = None
    stopping: Annotated[
        bool, Field(description="It was told to stop and this is its last report; one that is killed cannot say so.")
    ] = False


class GuardApplied(Record):
    """A guard has applied a revocation."""

    type: Literal["guard.applied"] = "guard.applied"
    service: Service
    instance: Instance
    revocation: Annotated[Name, Field(description="The revocation's id.")]
    after_ms: Annotated[Milliseconds, Field(description="Since the revocation's append.")]
    closed: Annotated[Duration, Field(description="How many open things it closed: WebSockets, streams, hooks.")]


class Violation(Record):
    """A service accepted activity of a session after its end: it is unguarded, or its guard was stale."""

    type: Literal["violation"] = "violation"
    session: SessionRef
    subject: Subject
    tenant: Tenant | None = None
    service: Service
    ended_at: Annotated[Instant, Field(description="decided_at of the ending.")]
    active_at: Annotated[Instant, Field(description="Instant of the activity.")]
    ending: Annotated[Name, Field(description="Id of the ending.")]


class DeadLetter(Record):
    """What could not be read, where it stands, and why."""

    type: Literal["dead_letter"] = "dead_letter"
    topic: Name
    partition: Partition
    offset: Offset
    entry: Annotated[Duration | None, Field(description="Index of the bad entry of a packed record; null: the record.")]
    reason: Annotated[str, Field(min_length=1, max_length=REASON_LENGTH_MAX)]
    size: Annotated[Duration, Field(description="Bytes of the whole value.")]
    value: Annotated[str | None, Field(description="base64 of its first 4096 bytes; null: the value was null.")]

    @classmethod
    def of(
        cls, topic: str, partition: int, offset: int, value: bytes | None, reason: str, entry: int | None = None
    ) -> "DeadLetter":
        """Return the dead letter of a record's value, cut to what a dead letter holds."""
        kept = None if value is None else base64.b64encode(value[:DEAD_LETTER_VALUE_BYTES_MAX]).decode("ascii")
        return cls(
            topic=topic,
            partition=partition,
            offset=offset,
            entry=entry,
            reason=reason[:REASON_LENGTH_MAX],
            size=len(value or b""),
            value=kept,
        )
