"""Which slots belong to this subject?

A revocation of a subject has to find its sessions among a million without a scan. A dict from subject to slots would
cost about 100 bytes a session; this chained hash table over three int columns costs 12 to 16, since the strings it
compares stand in the session table already. Order within a chain is arbitrary: callers sort what they find.

    heads[hash(subject) & mask] -> slot <-> following[slot] <-> ... -> -1

Chains are linked both ways: all visitors of a site may be one subject ("guest"), and a session that ends must not walk
past all the others (to end 20,000 of them, oldest first: 63 s with chains linked one way, 0.06 s both ways).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

__all__ = ["SubjectIndex"]

_END = -1
_HEADS_MIN = 1024


class SubjectIndex:
    """Slots by subject. `subjects[slot]` is the table's own column and must not change while the slot is in the
    index."""

    __slots__ = ("_count", "_following", "_heads", "_preceding", "_subjects")

    def __init__(self, subjects: Sequence[str]) -> None:
        self._subjects = subjects
        self._heads = array("i", [_END]) * _HEADS_MIN
        self._following = array("i")
        self._preceding = array("i")  # of the first of a chain: _END
        self._count = 0

    def add(self, slot: int) -> None:
        """Put in a slot that is not in the index."""
        if slot >= len(self._following):
            more = array("i", [_END]) * (slot + 1 - len(self._following))
            self._following.extend(more)
            self._preceding.extend(more)
        self._link(slot)
        self._count += 1
        if self._count > len(self._heads):
            self._grow()

    def remove(self, slot: int) -> None:
        """Take out a slot that is in the index."""
        before, after = self._preceding[slot], self._following[slot]
        if before == _END:
            self._heads[hash(self._subjects[slot]) & (len(self._heads) - 1)] = after
        else:
            self._following[before] = after
        if after != _END:
            self._preceding[after] = before
        self._count -= 1

    def of(self, subject: str) -> list[int]:
        """Return the slots of `subject`, in no order."""
        subjects, following = self._subjects, self._following
        found = []
        at = self._heads[hash(subject) & (len(self._heads) - 1)]
        while at != _END:
            if subjects[at] == subject:
                found.append(at)
            at = following[at]
        return found

    def _link(self, slot: int) -> None:
        heads = self._heads
        head = hash(self._subjects[slot]) & (len(heads) - 1)
        after = heads[head]
        heads[head] = slot
        self._following[slot], self._preceding[slot] = after, _END
        if after != _END:
            self._preceding[after] = slot

    def _grow(self) -> None:
        members = []
        following = self._following
        for at in self._heads:
            while at != _END:
                members.append(at)
                at = following[at]
        self._heads = array("i", [_END]) * (2 * len(self._heads))
        for slot in members:
            self._link(slot)
