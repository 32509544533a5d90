"""What does a guard answer, and what does it say when a session ends?"""

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

from lapse.schemas import Cause

__all__ = ["ALLOWED", "ALLOWED_STALE", "DENIED_STALE", "ON_STALE", "Decision", "Ended", "OnStale"]

OnStale = Literal["allow", "deny"]
"""What a guard does that does not know enough: let sessions pass that it knows no ending of, or refuse them."""

ON_STALE: Final[tuple[OnStale, ...]] = get_args(OnStale)


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to "may this session go on?". It is true where it may: `if guard.check(session): ...`.

    Attributes:
        allowed: whether it may.
        cause: why the session ended; None where it is allowed, or refused only because the guard is stale.
        due_at: the instant at which it had to end, epoch ms of the log's scale.
        ending: the id of its ending in lapse.expiries; None while only a revocation is known.
        revocation: the id of the revocation that ended it.
        deny_until: until when the guard keeps the denial, epoch ms of the log's scale.
        stale: whether the answer rests on knowledge that is too old. What a guard knows of an ending stays true
            however old it is, so a refusal with a cause never says it.
    """

    allowed: bool
    cause: Cause | None = None
    due_at: int | None = None
    ending: str | None = None
    revocation: str | None = None
    deny_until: int | None = None
    stale: bool = False

    def __bool__(self) -> bool:
        return self.allowed


ALLOWED: Final = Decision(allowed=True)
ALLOWED_STALE: Final = Decision(allowed=True, stale=True)
DENIED_STALE: Final = Decision(allowed=False, stale=True)


class Ended(NamedTuple):
    """What hooks are told, once per ending. Of a session ended by a revocation alone some fields are not known yet."""

    session: str
    subject: str | None
    tenant: str | None
    cause: Cause
    due_at: int
    ending: str | None
    revocation: str | None
