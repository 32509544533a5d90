"""Which sessions ended, and which soon will? The records of `lapse.expiries` and `lapse.warnings`."""

from typing import Annotated, Literal

from pydantic import Field

from lapse.schemas.fields import (
    Cause,
    Duration,
    Instant,
    Limit,
    Name,
    Offset,
    Partition,
    Record,
    SessionRef,
    Subject,
    Tenant,
    Value,
)

__all__ = ["Evidence", "SessionEnded", "SessionExpiring", "Watermark"]


class Evidence(Value):
    """The record of lapse.activity that settled an ending."""

    partition: Partition
    offset: Offset


class SessionEnded(Record):
    """A session ended. It ends once: the id is derived from the session's reference, a repeated record is the same."""

    type: Literal["session.ended"] = "session.ended"
    id: Annotated[Name, Field(description="The ending's id, derived from the session's reference.")]
    session: SessionRef
    subject: Subject
    tenant: Tenant | None
    cause: Cause
    started_at: Annotated[Instant, Field(description="When the session started.")]
    last_seen_at: Annotated[Instant, Field(description="Its last activity that counted.")]
    due_at: Annotated[Instant, Field(description="When it had to end.")]
    decided_at: Annotated[Instant, Field(description="Stamp of the record that settled it.")]
    idle_ms: Annotated[Limit | None, Field(description="The idle limit in force; null: none.")]
    absolute_ms: Annotated[Limit | None, Field(description="The absolute limit in force; null: none.")]
    policy: Annotated[Name, Field(description="The policy it is reported under.")]
    policy_version: Annotated[Offset | None, Field(description="That policy's version; null: built in.")]
    revocation: Annotated[Name | None, Field(description="Id of the revocation that ended it.")]
    held: Annotated[bool, Field(description="Whether an outage of the log delayed it at all.")]
    evidence: Evidence
    deny_until: Annotated[Instant, Field(description="Until when guards refuse the session.")]


class Watermark(Record):
    """All endings of this partition with `decided_at` below `as_of` stand before this record."""

    type: Literal["watermark"] = "watermark"
    as_of: Instant
    offset_ms: Annotated[
        int,
        Field(
            ge=-(2**53),
            le=2**53,
            description="What is added to the broker's append times to get log time: steps of its clock, taken out.",
        ),
    ] = 0


class SessionExpiring(Record):
    """A session is about to end, unless something happens (cause idle) or whatever happens (cause absolute)."""

    type: Literal["session.expiring"] = "session.expiring"
    session: SessionRef
    subject: Subject
    tenant: Tenant | None = None
    cause: Cause
    due_at: Annotated[Instant, Field(description="When it is due.")]
    in_ms: Annotated[Duration, Field(description="How long from the warning to due_at.")]
