"""Which types do the fields of records have?

All models are strict: `"1"` and `true` are not integers, `1` is not text. A name is 1 to 256 code points. Instants
(`*_at`) are epoch milliseconds of the log's scale, durations (`*_ms`) milliseconds; both fit in 64 bits.
"""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from lapse.schemas.limits import DURATION_MAX_MS, INT64_MAX, INT64_MIN, NAME_LENGTH_MAX, SCHEMA_VERSION

__all__ = [
    "Age",
    "Cause",
    "Duration",
    "Instant",
    "Limit",
    "Mac",
    "Name",
    "Names",
    "Offset",
    "Partition",
    "Record",
    "Service",
    "SessionRef",
    "Subject",
    "Tenant",
    "Value",
    "Version",
]


class Value(BaseModel):
    """A part of a record: immutable, strict, unknown fields ignored (a newer writer may add some)."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


Version = Annotated[
    int,
    Field(ge=1, le=SCHEMA_VERSION, description="Version of the record's form; absent means 1."),
]


class Record(Value):
    """A whole value of a topic. Each model adds `type`, the discriminator on its topic.

    `compact` says how the codec writes it: without the fields that are null or empty (activity of services, of which
    there are many), or with all of them (everything else, so that readers see what there is).
    """

    compact: ClassVar[bool] = False

    type: str
    v: Version = SCHEMA_VERSION


class Cause(StrEnum):
    """Why a session ended."""

    IDLE = "idle"
    ABSOLUTE = "absolute"
    REVOKED = "revoked"
    CLOSED = "closed"
    DISPLACED = "displaced"


Name = Annotated[str, StringConstraints(min_length=1, max_length=NAME_LENGTH_MAX)]
Names = Annotated[tuple[Name, ...], Field(strict=False)]
"""Some names. A list is taken for the tuple, for JSON has no tuples; the names in it stay strict."""

SessionRef = Annotated[
    Name,
    Field(
        description="The session's reference: base64url of SHA-256 of the session id, cut to 22 characters "
        "(HMAC-SHA-256 where a key is configured). Never the session id itself, which is a credential."
    ),
]
Subject = Annotated[Name, Field(description="The user or machine that logged in.")]
Tenant = Annotated[
    str,
    StringConstraints(min_length=1, max_length=NAME_LENGTH_MAX, pattern=r"^[^/]*$"),
    Field(description="The organisation the subject belongs to; `/` is refused, for it separates tenant from subject."),
]
Service = Annotated[Name, Field(description="The service that reports.")]
Instant = Annotated[int, Field(ge=INT64_MIN, le=INT64_MAX)]
Age = Annotated[int, Field(ge=INT64_MIN, le=INT64_MAX)]
"""How long ago, by the writer's monotonic clock. Out of range it is clamped and counted, not refused."""
Duration = Annotated[int, Field(ge=0, le=INT64_MAX)]
Limit = Annotated[int, Field(ge=1, le=DURATION_MAX_MS)]
Partition = Annotated[int, Field(ge=0, le=2**31 - 1)]
Offset = Annotated[int, Field(ge=0, le=INT64_MAX)]
Mac = Annotated[
    Name,
    Field(description="base64url, unpadded, of HMAC-SHA-256 under the workers' key; see lapse.schemas.signing."),
]
