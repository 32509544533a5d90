"""Which slots belong to this subject?

A revocation of a subject has to find its sessions among a million without a scan. A dict from subject to slots would
cost about 100 bytes a session; this chained hash table over two int columns costs 4 to 12, since the strings it
compares stand in the session table already. Order within a chain is arbitrary: callers sort what they find.

    heads[(hash(subject) ^ hash(tenant)) & mask] -> slot -> following[slot] -> ... -> -1
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

__all__ = ["SubjectIndex"]

_END = -1
_HEADS_MIN = 1024


class SubjectIndex:
    """Slots by (subject, tenant). These are the table's own columns: a slot's must not change while it is in here."""

    __slots__ = ("_count", "_following", "_heads", "_subjects", "_tenants")

    def __init__(self, subjects: Sequence[str], tenants: Sequence[str | None]) -> None:
        self._subjects = subjects
        self._tenants = tenants
        self._heads = array("i", [_END]) * _HEADS_MIN
        self._following = array("i")
        self._count = 0

    def add(self, slot: int) -> None:
        """Put in a slot that is not in the index."""
        following, heads = self._following, self._heads
        if slot >= len(following):
            following.extend([_END] * (slot + 1 - len(following)))
        head = (hash(self._subjects[slot]) ^ hash(self._tenants[slot])) & (len(heads) - 1)
        following[slot] = heads[head]
        heads[head] = slot
        self._count += 1
        if self._count > len(heads):
            self._grow()

    def add_all(self, slots: Iterable[int], count: int) -> None:
        """Put `count` slots into an index that is empty."""
        size = len(self._heads)
        while size < count:
            size *= 2
        mask = size - 1
        self._heads = heads = array("i", [_END]) * size
        self._following = following = array("i", [_END]) * len(self._subjects)
        subjects, tenants = self._subjects, self._tenants
        for slot in slots:
            head = (hash(subjects[slot]) ^ hash(tenants[slot])) & mask
            following[slot] = heads[head]
            heads[head] = slot
        self._count = count

    def remove(self, slot: int) -> None:
        """Take out a slot that is in the index."""
        following, heads = self._following, self._heads
        head = (hash(self._subjects[slot]) ^ hash(self._tenants[slot])) & (len(heads) - 1)
        at = heads[head]
        if at == slot:
            heads[head] = following[slot]
        else:
            while following[at] != slot:
                at = following[at]
            following[at] = following[slot]
        self._count -= 1

    def has(self, subject: str, tenant: str | None, count: int) -> bool:
        """Return whether the subject has at least `count` (at least 1) slots."""
        subjects, tenants, following = self._subjects, self._tenants, self._following
        at = self._heads[(hash(subject) ^ hash(tenant)) & (len(self._heads) - 1)]
        while at != _END:
            if subjects[at] == subject and tenants[at] == tenant:
                count -= 1
                if not count:
                    return True
            at = following[at]
        return False

    def of(self, subject: str, tenant: str | None) -> list[int]:
        """Return the subject's slots, in no order."""
        subjects, tenants, following = self._subjects, self._tenants, self._following
        found = []
        at = self._heads[(hash(subject) ^ hash(tenant)) & (len(self._heads) - 1)]
        while at != _END:
            if subjects[at] == subject and tenants[at] == tenant:
                found.append(at)
            at = following[at]
        return found

    def _grow(self) -> None:
        members = []
        following = self._following
        for at in self._heads:
            while at != _END:
                members.append(at)
                at = following[at]
        mask = 2 * len(self._heads) - 1
        self._heads = heads = array("i", [_END]) * (mask + 1)
        subjects, tenants = self._subjects, self._tenants
        for slot in members:
            head = (hash(subjects[slot]) ^ hash(tenants[slot])) & mask
            following[slot] = heads[head]
            heads[head] = slot
