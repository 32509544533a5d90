"""How is an ending made, when there are 100,000 of them at one instant?

All fields of an ending come from the session table and the record in hand, which have been validated before; to
validate them again cost 2.7 us an ending, and pydantic's note of which fields were given 2 KB of memory that had to be
fetched and dropped. `make_ending` fills the model as pydantic would have. A property test holds the two together:
equal, and the same bytes on the wire.

Source: `pydantic.BaseModel.model_construct`, whose attributes these are; it is slower than validating.
"""

from __future__ import annotations

from lapse.schemas import SCHEMA_VERSION, Cause, Evidence, SessionEnded

__all__ = ["make_ending"]

_GIVEN = set(SessionEnded.model_fields) - {"type", "v"}
_new, _set = SessionEnded.__new__, object.__setattr__


def make_ending(
    id: str,  # the field's name
    session: str,
    subject: str,
    tenant: str | None,
    cause: Cause,
    started_at: int,
    last_seen_at: int,
    due_at: int,
    decided_at: int,
    idle_ms: int | None,
    absolute_ms: int | None,
    policy: str,
    policy_version: int | None,
    revocation: str | None,
    held: bool,
    evidence: Evidence,
    deny_until: int,
) -> SessionEnded:
    """Return the ending with these fields, which must be valid; see the module."""
    ending = _new(SessionEnded)
    fields = {
        "type": "session.ended",
        "v": SCHEMA_VERSION,
        "id": id,
        "session": session,
        "subject": subject,
        "tenant": tenant,
        "cause": cause,
        "started_at": started_at,
        "last_seen_at": last_seen_at,
        "due_at": due_at,
        "decided_at": decided_at,
        "idle_ms": idle_ms,
        "absolute_ms": absolute_ms,
        "policy": policy,
        "policy_version": policy_version,
        "revocation": revocation,
        "held": held,
        "evidence": evidence,
        "deny_until": deny_until,
    }
    _set(ending, "__dict__", fields)
    _set(ending, "__pydantic_fields_set__", _GIVEN)
    _set(ending, "__pydantic_extra__", None)
    _set(ending, "__pydantic_private__", None)
    return ending
