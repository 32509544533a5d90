"""What does a partition's owner copy into `lapse.activity`? Ticks of the clock, revocations, policies.

Control records have a null key and a `mac` (signing.py), since every service may write to this topic; the engine takes
none without a valid one.
"""

from typing import Annotated, Literal

from pydantic import Field

from lapse.schemas.fields import Age, Instant, Mac, Name, Offset, Record
from lapse.schemas.policies import Policy
from lapse.schemas.revocations import Revocation

__all__ = ["ClockTick", "PolicyAdopted", "RevocationOrdered"]


class ClockTick(Record):
    """Time goes on, also in a silent partition. `mono_ms`, `prev_ms` and `ack_ms` are of one monotonic clock."""

    type: Literal["clock.tick"] = "clock.tick"
    epoch: Annotated[int, Field(ge=0, le=2**63 - 1, description="Of the ownership: rises with each new owner.")]
    owner: Annotated[Name, Field(description="The worker that owns the partition.")]
    mono_ms: Annotated[Age, Field(description="The owner's monotonic clock when it sent this tick.")]
    wall_at: Annotated[Instant, Field(description="The owner's wall clock when it sent this tick.")]
    prev_ms: Annotated[Age | None, Field(description="mono_ms of its previous tick; null for the first.")] = None
    ack_ms: Annotated[Age | None, Field(description="When its previous tick was acknowledged; null: not yet.")] = None
    up_ms: Annotated[
        Age, Field(description="For how long its appends have not failed or been overdue by more than a second.")
    ]
    mac: Mac | None = None


class RevocationOrdered(Record):
    """A revocation, copied into the log that decides."""

    type: Literal["revocation.ordered"] = "revocation.ordered"
    at: Annotated[Instant, Field(description="Append time of the original.")]
    revocation: Revocation
    mac: Mac | None = None


class PolicyAdopted(Record):
    """A policy, copied into the log that decides. At or below the version in force it changes nothing."""

    type: Literal["policy.adopted"] = "policy.adopted"
    version: Annotated[Offset, Field(description="The record's offset in lapse.policies.")]
    policy: Policy
    mac: Mac | None = None
