"""Which sessions does the partition know, and what has changed since the last checkpoint?

A columnar table: a session is a slot, and each fact a column. What the hot path reads and writes are `array` columns of
8 bytes, so that a million sessions fit in some 300 MB and a checkpoint copies slices. Slots are used again; 64 of them
form a chunk, which is one record of `lapse.state`.

A slot is in one of these states:

    FREE     nobody
    LIVE     its start was reported
    ADOPTED  live, first seen by a touch or an elevation; a later start corrects its start and class
    ENDED    remembered so that later activity changes nothing; `last_seen_at` is its decided_at
    BARRED   revoked before it was seen; `last_seen_at` is the order's instant, `barred` has the revocation's id

The hot path reads one column to know that a touch is in time: `live_until`, a lower bound of the due instant. A touch
moves the due and leaves the bound, which is brought up when a stamp has come there (`renew`): once in an idle timeout.
It is 0 for all that is not plainly live, and for a live slot in its warning window, because its next touch may end
that.

Chunk layout (lapse.state, key "c" + chunk number in decimal), little-endian:

    byte 0      version, 1
    byte 1      n, number of slots up to the last one in use, 0 to 64
    n bytes     state
    n * 8       started_at
    n * 8       last_seen_at
    n * 2       index into the chunk's own list of classes (0xFFFF: none)
    the rest    JSON, slots counted from the chunk's first:
                {"r": [references], "s": [subjects],
                 "c": [[tenant, service, policy, [[attribute, value], ...], token_life_ms], ...]: the classes,
                 "b": {slot: revocation id}, "v": {slot: [services reported as violating]},
                 "w": {slot: due that was warned of}, "t": {slot: tenant, where it has no class}}

A chunk with nobody in it is written with n = 0, never as a tombstone: no meaning rests on a tombstone.
"""

from __future__ import annotations

import struct
import sys
from array import array
from typing import TypeVar

import orjson

from lapse.pipeline.engine.policies import PolicyBook, SessionClass, SessionClasses
from lapse.pipeline.engine.subject_index import SubjectIndex
from lapse.pipeline.engine.wheel import NEVER
from lapse.schemas import InvariantError

__all__ = ["ADOPTED", "BARRED", "CHUNK_SLOTS", "ENDED", "FREE", "LIVE", "SessionTable"]

FREE, LIVE, ADOPTED, ENDED, BARRED = range(5)

CHUNK_SHIFT = 6
CHUNK_SLOTS = 1 << CHUNK_SHIFT
"""64 slots make a record of about 4 KB: 15,600 records for a million sessions, where aiokafka sends 0.1 M/s."""

_CHUNK_VERSION = 1
_NO_CLASS = 0xFFFF
_HEAD = struct.Struct("<BB")
_V = TypeVar("_V")


_numbers: list[int] = []


def slot_numbers(count: int) -> list[int]:
    """Return at least the numbers below `count`, each the one object that all tables of a process have for it.

    A number in a look-up is an object of 32 bytes. Those of eight partitions of 375,000 sessions are 96 MB, and one
    more wait for memory at each touch; shared they are 12 MB, of which a good part stays in the cache.
    """
    if count > len(_numbers):
        _numbers.extend(range(len(_numbers), count))
    return _numbers


class SessionTable:
    """The sessions of one partition; see the module's docstring for states and columns."""

    def __init__(self, book: PolicyBook) -> None:
        self.classes = SessionClasses(book)
        self.slot_of: dict[str, int] = {}
        self.sessions: list[str] = []
        self.subjects: list[str] = []
        self.tenants: list[str | None] = []
        self.state = bytearray()
        self.started_at = array("q")
        self.last_seen_at = array("q")
        self.live_until = array("q")
        """A touch is in time before it: what was due at the last `renew`; 0 where the hot path must not decide."""
        self.absolute_due_at = array("q")
        self.class_of = array("i")
        self.barred: dict[int, str] = {}
        self.violators: dict[int, list[str]] = {}
        self.warned: dict[int, int] = {}
        """Slots within their warning window, and the due that was warned of, or that time jumped past."""
        self.by_subject = SubjectIndex(self.subjects, self.tenants)
        """The live slots by subject."""
        self.tenanted = False
        """Whether any session may have a tenant."""
        self.dirty = bytearray()
        self.live = 0
        self._free: list[int] = []

    def add(
        self, session: str, subject: str, tenant: str | None, state: int, started_at: int, last_seen_at: int
    ) -> int:
        """Give a session a slot in the given state, without a class, and return the slot."""
        if self._free:
            slot = self._free.pop()
            self.sessions[slot], self.subjects[slot], self.tenants[slot] = session, subject, tenant
        else:
            slot = slot_numbers(len(self.sessions) + 1)[len(self.sessions)]
            self.sessions.append(session)
            self.subjects.append(subject)
            self.tenants.append(tenant)
            self.state.append(FREE)
            self.started_at.append(0)
            self.last_seen_at.append(0)
            self.live_until.append(0)
            self.absolute_due_at.append(NEVER)
            self.class_of.append(-1)
            if slot >> CHUNK_SHIFT >= len(self.dirty):
                self.dirty.append(1)
        self.slot_of[session] = slot
        self.tenanted |= tenant is not None
        self.state[slot] = state
        self.started_at[slot] = started_at
        self.last_seen_at[slot] = last_seen_at
        if state in (LIVE, ADOPTED):
            self.live += 1
            self.by_subject.add(slot)
        self.dirty[slot >> CHUNK_SHIFT] = 1
        return slot

    def classify(self, slot: int, kind: SessionClass) -> None:
        """Give a live slot its class, and so its limits."""
        before = self.class_of[slot]
        number = self.class_of[slot] = self.classes.take(kind)
        if before >= 0:
            self.classes.give_back(before)
        self.tenants[slot] = self.classes.kinds[number].tenant  # one string for all sessions of a tenant
        self.derive(slot)
        self.dirty[slot >> CHUNK_SHIFT] = 1

    def derive(self, slot: int) -> None:
        """Set a live slot's limit columns from its class and start."""
        absolute = self.classes.limits[self.class_of[slot]].absolute_ms
        self.absolute_due_at[slot] = NEVER if absolute is None else self.started_at[slot] + absolute
        self.live_until[slot] = 0
        self.renew(slot)

    def renew(self, slot: int) -> int:
        """Bring a slot's `live_until` up to its due, and return it: 0 where the hot path must not decide."""
        if self.state[slot] not in (LIVE, ADOPTED) or slot in self.warned:
            return 0
        until = self.live_until[slot] = min(self.idle_due_at(slot), self.absolute_due_at[slot])
        return until

    def idle_due_at(self, slot: int) -> int:
        """Return the instant of a live slot's idle limit, NEVER without one."""
        idle_ms = self.classes.limits[self.class_of[slot]].idle_ms
        return NEVER if idle_ms is None else self.last_seen_at[slot] + idle_ms

    def end(self, slot: int, decided_at: int) -> None:
        """Turn a live or barred slot into a remembered ending."""
        if self.state[slot] in (LIVE, ADOPTED):
            self.live -= 1
            self.by_subject.remove(slot)
        self._drop_class(slot)
        self.warned.pop(slot, None)
        self.barred.pop(slot, None)
        self.state[slot] = ENDED
        self.last_seen_at[slot] = decided_at
        self.live_until[slot] = 0
        self.absolute_due_at[slot] = NEVER
        self.dirty[slot >> CHUNK_SHIFT] = 1

    def free(self, slot: int) -> None:
        """Forget an ended or barred slot."""
        if self.state[slot] not in (ENDED, BARRED):
            raise InvariantError(
                f"slot {slot} in state {self.state[slot]} cannot be freed: only an ended session is forgotten"
            )
        del self.slot_of[self.sessions[slot]]
        self.barred.pop(slot, None)
        self.violators.pop(slot, None)
        self.state[slot] = FREE
        self.sessions[slot], self.subjects[slot], self.tenants[slot] = "", "", None
        self._free.append(_numbers[slot])
        self.dirty[slot >> CHUNK_SHIFT] = 1

    def touch_chunk(self, slot: int) -> None:
        """Mark the slot's chunk as changed."""
        self.dirty[slot >> CHUNK_SHIFT] = 1

    def is_live(self, slot: int) -> bool:
        """Return whether the slot holds a session that has not ended."""
        return self.state[slot] in (LIVE, ADOPTED)

    def live_slots(self) -> list[int]:
        """Return the slots of all live sessions."""
        return [slot for slot, state in enumerate(self.state) if FREE < state < ENDED]

    def _drop_class(self, slot: int) -> None:
        if self.class_of[slot] >= 0:
            self.classes.give_back(self.class_of[slot])
            self.class_of[slot] = -1

    # Checkpoints

    def cut(self) -> list[tuple[bytes, bytes]]:
        """Return the changed chunks as (key, value) and clear the dirty marks."""
        chunks = []
        find, position = self.dirty.find, 0
        while (chunk := find(1, position)) >= 0:
            chunks.append((b"c%d" % chunk, self._encode(chunk)))
            self.dirty[chunk] = 0
            position = chunk + 1
        return chunks

    def _encode(self, chunk: int) -> bytes:
        first = chunk << CHUNK_SHIFT
        n = len(self.state[first : first + CHUNK_SLOTS].rstrip(b"\0"))
        if n == 0:
            return _HEAD.pack(_CHUNK_VERSION, 0)
        last = first + n
        class_of = self.class_of[first:last]
        numbers = dict.fromkeys(class_of)  # in the order of their first slots
        without_class = -1 in numbers
        numbers.pop(-1, None)
        if len(numbers) == 1 and not without_class:
            indexes = array("H", (0,)) * n
        else:
            index_of = {number: index for index, number in enumerate(numbers)}
            index_of[-1] = _NO_CLASS
            indexes = array("H", map(index_of.__getitem__, class_of))
        names = {
            "r": self.sessions[first:last],
            "s": self.subjects[first:last],
            "c": [list(self.classes.kinds[number]) for number in numbers],
            "b": _within(self.barred, first, last),
            "v": _within(self.violators, first, last),
            "w": _within(self.warned, first, last),
            "t": self._tenants_without_class(first, last) if without_class else {},
        }
        columns = [self.started_at[first:last], self.last_seen_at[first:last], indexes]
        if sys.byteorder == "big":
            for column in columns:
                column.byteswap()
        return b"".join(
            (
                _HEAD.pack(_CHUNK_VERSION, n),
                self.state[first:last],
                *(column.tobytes() for column in columns),
                orjson.dumps(names),
            )
        )

    def _tenants_without_class(self, first: int, last: int) -> dict[str, str]:
        return {
            str(slot - first): tenant
            for slot in range(first, last)
            if self.class_of[slot] < 0 and (tenant := self.tenants[slot]) is not None
        }

    def load(self, chunk: int, value: bytes) -> None:
        """Take a chunk of a checkpoint back; each chunk once, in any order, into a new table that `grow` made large.

        Raises:
            InvariantError: the chunk's version is unknown or its bytes do not fit its layout.
        """
        version, n = _HEAD.unpack_from(value)
        if version != _CHUNK_VERSION:
            raise InvariantError(
                f"chunk {chunk} of the state has version {version}, this worker reads {_CHUNK_VERSION}: "
                "run the newer worker"
            )
        first = chunk << CHUNK_SHIFT
        if n == 0:
            return
        started, last_seen, indexes = array("q"), array("q"), array("H")
        position = _HEAD.size + n
        for column in (started, last_seen, indexes):
            end = position + n * column.itemsize
            column.frombytes(value[position:end])
            if sys.byteorder == "big":
                column.byteswap()
            position = end
        names = orjson.loads(value[position:])
        self.state[first : first + n] = value[_HEAD.size : _HEAD.size + n]
        self.started_at[first : first + n] = started
        self.last_seen_at[first : first + n] = last_seen
        self.sessions[first : first + n] = names["r"]
        self.subjects[first : first + n] = names["s"]
        self.warned.update((first + int(index), due) for index, due in names["w"].items())
        self.barred.update((first + int(index), revocation) for index, revocation in names["b"].items())
        self.violators.update((first + int(index), services) for index, services in names["v"].items())
        for index, tenant in names["t"].items():
            self.tenants[first + int(index)] = tenant
        kinds = [SessionClass(c[0], c[1], c[2], tuple((k, v) for k, v in c[3]), c[4]) for c in names["c"]]
        numbers = [self.classes.take(kind, indexes.count(index)) for index, kind in enumerate(kinds)]
        tenants = [self.classes.kinds[number].tenant for number in numbers]
        for slot, index in enumerate(indexes, first):
            if index != _NO_CLASS:
                self.class_of[slot] = numbers[index]
                self.tenants[slot] = tenants[index]

    def grow(self, chunks: int) -> None:
        """Make an empty table so large, before the first `load`."""
        more = chunks << CHUNK_SHIFT
        self.sessions.extend([""] * more)
        self.subjects.extend([""] * more)
        self.tenants.extend([None] * more)
        self.state.extend(bytes(more))
        for column, empty in (
            (self.started_at, 0),
            (self.last_seen_at, 0),
            (self.live_until, 0),
            (self.absolute_due_at, NEVER),
            (self.class_of, -1),
        ):
            column.extend(array(column.typecode, [empty]) * more)
        self.dirty.extend(bytes(chunks))

    def index(self) -> None:
        """Build what is derived, after the last `load`: look-ups, limits, free slots, counts."""
        state, class_of, limits = self.state, self.class_of, self.classes.limits
        live_until, absolute_due_at = self.live_until, self.absolute_due_at
        started_at, last_seen_at = self.started_at, self.last_seen_at
        self._free = [slot for slot, of in zip(slot_numbers(len(state)), state, strict=False) if of == FREE]
        self._free.reverse()
        self.slot_of = dict(zip(self.sessions, slot_numbers(len(state)), strict=False))
        self.tenanted = self.tenants.count(None) != len(self.tenants)
        self.slot_of.pop("", None)  # what a free slot has for a reference
        live = self.live_slots()
        self.live = len(live)
        self.by_subject.add_all(live, len(live))
        idle_of = [NEVER if of.idle_ms is None else of.idle_ms for of in limits]
        absolute_of = [of.absolute_ms for of in limits]
        for slot in live:
            number = class_of[slot]
            until = last_seen_at[slot] + idle_of[number]
            absolute = absolute_of[number]
            if absolute is not None:
                due = absolute_due_at[slot] = started_at[slot] + absolute
                until = min(due, until)
            live_until[slot] = until
        for slot in self.warned:
            live_until[slot] = 0


def _within(sparse: dict[int, _V], first: int, last: int) -> dict[str, _V]:
    if not sparse:
        return {}
    return {str(slot - first): sparse[slot] for slot in range(first, last) if slot in sparse}
