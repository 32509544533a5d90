"""How are a million endings kept in little memory?

Endings that share cause, revocation and the minute of their `deny_until` stand in blocks of rows:

    sessions    list     a pointer of 8 bytes; the same text is the key of the denials' dictionary
    dues        uint32   ms from due_at to the end of the minute: 49 days reach further than sessions live
    untils      uint16   ms from the beginning of the minute to deny_until

The dictionary's value is the block, not the row: a number of its own for each row would cost 32 bytes more. So a row is
found by going through its block, 1.2 us on average, and only where somebody asks for `due_at` or `deny_until`. The
ending's id is not kept: it is a function of the session's reference (DESIGN section 3), 0.8 us.

Per ending: text of 22 characters 80 bytes (71, rounded up by the allocator), dictionary 30, pointer 8, columns 6, and
of the block's own 312 bytes 2.4: 127 bytes. A key of 16 bytes would save nothing: bytes take 64, but only a dictionary
of text alone does without a stored hash, 12 bytes less an entry.
"""

from array import array
from typing import Any, Final

from lapse.consumers.guard.buckets import BUCKET_MS
from lapse.consumers.guard.decisions import Decision
from lapse.schemas import Cause, ending_id

__all__ = ["DUE_MAX_MS", "ROWS_MAX", "Block", "Refused"]

ROWS_MAX: Final = 128
"""Rows of a block: the last size before a list grows by more than it needs, and found in a microsecond."""

DUE_MAX_MS: Final = 2**32 - 1
"""From due_at to the end of deny_until's minute: 49 days. An ending beyond is kept as a decision of its own."""


class Block:
    """Endings of one cause, one revocation and one minute of `deny_until`."""

    __slots__ = ("cause", "dues", "minute", "revocation", "sessions", "untils")

    def __init__(self, cause: Cause, revocation: str | None, minute: int) -> None:
        self.cause = cause
        self.revocation = revocation
        self.minute = minute
        self.sessions: list[str] = []
        self.dues = array("I")
        self.untils = array("H")

    def close(self) -> None:
        """Take no more rows: a tuple of texts is nothing that Python searches for cycles, as it would a list."""
        self.sessions = tuple(self.sessions)  # type: ignore[assignment]  # it is only read from now on

    def row(self, session: str) -> tuple[int, int]:
        """Return (due_at, deny_until) of a session that is in the block."""
        row = self.sessions.index(session)
        begin = self.minute * BUCKET_MS
        return begin + BUCKET_MS - self.dues[row], begin + self.untils[row]

    def prolong(self, session: str, deny_until: int) -> None:
        """Raise a session's `deny_until` within the block's minute."""
        row = self.sessions.index(session)
        self.untils[row] = max(self.untils[row], deny_until - self.minute * BUCKET_MS)


class Refused(Decision):
    """The decision about a session in a block; what takes a search is looked up when it is asked for."""

    __slots__ = ("_block", "_session")
    _block: Block
    _session: str

    def __init__(self, block: Block, session: str) -> None:
        _set_block(self, block)
        _set_session(self, session)

    @property
    def allowed(self) -> bool:
        return False

    @property
    def stale(self) -> bool:
        return False

    @property
    def cause(self) -> Cause:
        return self._block.cause

    @property
    def revocation(self) -> str | None:
        return self._block.revocation

    @property
    def due_at(self) -> int:
        return self._block.row(self._session)[0]

    @property
    def deny_until(self) -> int:
        return self._block.row(self._session)[1]

    @property
    def ending(self) -> str:
        return ending_id(self._session)

    def whole(self) -> Decision:
        """Return the same as a plain Decision."""
        due_at, deny_until = self._block.row(self._session)
        return Decision(
            allowed=False,
            cause=self.cause,
            due_at=due_at,
            ending=self.ending,
            revocation=self.revocation,
            deny_until=deny_until,
        )

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return self.whole() == (other.whole() if isinstance(other, Refused) else other)

    def __hash__(self) -> int:
        return hash(self.whole())

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.allowed, self.cause, self.due_at, self.ending, self.revocation, self.deny_until, self.stale)
        return Decision, fields


# A frozen class refuses ordinary assignment; the slots' own setters take 40 ns where object.__setattr__ takes 90.
_set_block: Final = vars(Refused)["_block"].__set__
_set_session: Final = vars(Refused)["_session"].__set__
