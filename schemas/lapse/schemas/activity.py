"""What do services report? The records of `lapse.activity` that services write.

`started`, `touched` and `elevated` move the session's last activity; `refreshed` and `closed` do not. The instant of
each is its record's stamp minus `age_ms`. What a record says when it is forwarded to another partition by its owner:
`forwarded` and `mac`; services leave both out.
"""

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from lapse.schemas.fields import (
    Age,
    Duration,
    Instant,
    Limit,
    Mac,
    Name,
    Offset,
    Partition,
    Record,
    Service,
    SessionRef,
    Subject,
    Tenant,
)
from lapse.schemas.limits import INT64_MAX, INT64_MIN, NAME_LENGTH_MAX, PACKED_ENTRIES_MAX

__all__ = [
    "PackedTouch",
    "PackedTouches",
    "SessionClosed",
    "SessionElevated",
    "SessionRefreshed",
    "SessionStarted",
    "SessionTouched",
]

AgeOfActivity = Annotated[
    Age,
    Field(description="How long ago it happened when the record was sent; below 0 or above 1 h it is clamped."),
]
SessionAge = Annotated[
    Age,
    Field(description="How long ago the session started, counted from the activity; used if the session is unknown."),
]
Device = Annotated[Name, Field(description="The device, as the service names it.")]
Network = Annotated[Name, Field(description="The network the activity came from, such as 203.0.113.0/24.")]
Forwarded = Annotated[
    tuple[Partition, Offset, Duration | None, Instant],
    Field(
        strict=False,
        description="Where the owner of the wrong partition found it: [partition, offset, index in a packed record or "
        "null, stamp].",
    ),
]


class _SessionActivity(Record):
    """What all reports about one session say."""

    compact: ClassVar[bool] = True

    session: SessionRef
    subject: Subject
    tenant: Tenant | None = None
    service: Service
    age_ms: AgeOfActivity
    forwarded: Forwarded | None = None
    mac: Mac | None = None


class SessionStarted(_SessionActivity):
    """A subject logged in. The first one gives the session's start; a repeated one counts as a touch."""

    type: Literal["session.started"] = "session.started"
    policy: Annotated[Name | None, Field(description="The policy by name; null: the rules choose.")] = None
    device: Device | None = None
    network: Network | None = None
    attributes: Annotated[
        dict[Name, Name], Field(description="What the policies' rules may ask for, such as a role.")
    ] = Field(default_factory=dict)
    token_life_ms: Annotated[
        Limit | None, Field(description="The longest life of a token of this session; denials outlive it.")
    ] = None


class SessionTouched(_SessionActivity):
    """The user did something. It may stand for several touches that the publisher joined."""

    type: Literal["session.touched"] = "session.touched"
    since_ms: Annotated[Age | None, Field(description="Age of the first touch it stands for; null: its own.")] = None
    pause_ms: Annotated[Age | None, Field(description="The longest pause between the touches it stands for.")] = None
    hold_ms: Annotated[
        Age | None,
        Field(description="An upload or job counts as activity for so long, capped by the policy's hold_max_ms."),
    ] = None
    session_age_ms: SessionAge | None = None
    device: Device | None = None
    network: Network | None = None


class SessionRefreshed(_SessionActivity):
    """A token was refreshed. It moves nothing; after the session's end it is a violation."""

    type: Literal["session.refreshed"] = "session.refreshed"
    generation: Annotated[Duration | None, Field(description="Which refresh of the session it is.")] = None


class SessionElevated(_SessionActivity):
    """The subject proved itself again (a second factor, a password). It counts as a touch."""

    type: Literal["session.elevated"] = "session.elevated"
    session_age_ms: SessionAge | None = None


class SessionClosed(_SessionActivity):
    """The subject logged out."""

    type: Literal["session.closed"] = "session.closed"


class PackedTouch(NamedTuple):
    """One entry of a packed record, as `codec.parse_packed_entry` reads it."""

    session: str
    subject: str
    tenant: str | None
    age_ms: int
    since_ms: int | None = None
    pause_ms: int | None = None


_INT64_SCHEMA = {"type": "integer", "minimum": INT64_MIN, "maximum": INT64_MAX}
_OPTIONAL_INT64_SCHEMA = {"anyOf": [_INT64_SCHEMA, {"type": "null"}]}
_NAME_SCHEMA = {"type": "string", "minLength": 1, "maxLength": NAME_LENGTH_MAX}
_ENTRY_SCHEMA: dict[str, Any] = {
    "type": "array",
    "description": "[session, subject, tenant or null, age_ms, since_ms or null, pause_ms or null]; the last two may "
    "be left out.",
    "prefixItems": [
        {**_NAME_SCHEMA, "title": "session"},
        {**_NAME_SCHEMA, "title": "subject"},
        {"anyOf": [{**_NAME_SCHEMA, "pattern": "^[^/]*$"}, {"type": "null"}], "title": "tenant"},
        {**_INT64_SCHEMA, "title": "age_ms"},
        {**_OPTIONAL_INT64_SCHEMA, "title": "since_ms"},
        {**_OPTIONAL_INT64_SCHEMA, "title": "pause_ms"},
    ],
    "minItems": 4,
    "items": False,
}


class PackedTouches(Record):
    """Touches of one partition in one record: key null, partition explicit.

    Entries are read one by one by `codec.parse_packed_entry`, so that a bad one is dead-lettered alone.
    """

    compact: ClassVar[bool] = True

    type: Literal["touches"] = "touches"
    service: Service
    touches: Annotated[
        list[Any],
        Field(
            max_length=PACKED_ENTRIES_MAX,
            description="The touches, at most 500; more refuse the record whole.",
            json_schema_extra={"items": _ENTRY_SCHEMA},
        ),
    ]
