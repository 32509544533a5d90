"""How is an ending made, when there are 100,000 of them at one instant?

All fields of an ending come from the session table and the record in hand, which have been validated before; to
validate them again cost 2.7 us an ending, and pydantic's note of which fields were given 2 KB of memory that had to be
fetched and dropped. `make_ending` fills the model as pydantic would have. A property test holds the two together:
equal, and the same bytes on the wire.

Source: `pydantic.BaseModel.model_construct`, whose attributes these are; it is slower than validating.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, overload

from lapse.pipeline.engine.policies import Limits
from lapse.schemas import SCHEMA_VERSION, Cause, Evidence, SessionEnded, ending_id

__all__ = ["Decided", "Endings", "make_ending"]

_GIVEN = set(SessionEnded.model_fields) - {"type", "v"}
_new, _set = SessionEnded.__new__, object.__setattr__


class Decided(NamedTuple):
    """That a session has ended, as decided; fields as in `SessionEnded`, `limits` those of its class."""

    session: str
    subject: str
    tenant: str | None
    cause: Cause
    started_at: int
    last_seen_at: int
    due_at: int
    decided_at: int
    limits: Limits
    revocation: str | None
    held: bool
    evidence: Evidence
    deny_until: int


def make_ending(decided: Decided) -> SessionEnded:
    """Return the ending of a decision, whose fields must be valid; see the module."""
    (
        session, subject, tenant, cause, started_at, last_seen_at, due_at, decided_at,
        limits, revocation, held, evidence, deny_until,
    ) = decided  # fmt: skip
    ending = _new(SessionEnded)
    fields = {
        "type": "session.ended",
        "v": SCHEMA_VERSION,
        "id": ending_id(session),
        "session": session,
        "subject": subject,
        "tenant": tenant,
        "cause": cause,
        "started_at": started_at,
        "last_seen_at": last_seen_at,
        "due_at": due_at,
        "decided_at": decided_at,
        "idle_ms": limits.idle_ms,
        "absolute_ms": limits.absolute_ms,
        "policy": limits.policy,
        "policy_version": limits.version,
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


class Endings(Sequence[SessionEnded]):
    """Endings in the order of their decisions. Each look at one makes its model anew."""

    __slots__ = ("decided",)

    def __init__(self, decided: Iterable[Decided] = ()) -> None:
        self.decided = list(decided)
        """The same, without a model."""

    def append(self, decided: Decided) -> None:
        """Add one."""
        self.decided.append(decided)

    def extend(self, decided: Iterable[Decided] | Endings) -> None:
        """Add several, or those of another sequence."""
        self.decided.extend(decided.decided if isinstance(decided, Endings) else decided)

    @overload
    def __getitem__(self, index: int) -> SessionEnded: ...
    @overload
    def __getitem__(self, index: slice) -> list[SessionEnded]: ...
    def __getitem__(self, index: int | slice) -> SessionEnded | list[SessionEnded]:
        if isinstance(index, slice):
            return list(map(make_ending, self.decided[index]))
        return make_ending(self.decided[index])

    def __len__(self) -> int:
        return len(self.decided)

    def __iter__(self) -> Iterator[SessionEnded]:
        return map(make_ending, self.decided)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it grows

    def __repr__(self) -> str:
        return f"Endings({list(self)!r})"
