"""When does which slot have to be looked at next?

Theory of operation
-------------------
A timing wheel with lazy re-arming. A slot (a row of the session table) is armed for one instant; `expire(now)` gives
the slots whose instant has come. A touch does not come here at all: the owner of the wheel looks at a slot that fired,
finds that its session lives on, and arms it for its new instant. So a session costs timer work once per timeout
and not once per touch.

The wheel has as many spokes as are in use. A spoke holds the slots armed for one span of `2**SPOKE_SHIFT` ms, in no
order. When time reaches a spoke it is opened: its slots go into `_near`, a heap ordered by exact instant. So far
instants cost one list append, and only those about to fire are sorted.

`_armed[slot]` is the only truth: an entry of a spoke or of the heap counts only if the slot is still armed for just
that instant. Arming a slot again (earlier or later) leaves a stale entry that is dropped when its time comes.

Instants are of any one monotone scale (the engine uses log time), in ms, >= 0. `expire(now)` includes `now` itself.

Source: Varghese and Lauck, "Hashed and Hierarchical Timing Wheels" (SOSP 1987), scheme 6 without a fixed size.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Sequence
from heapq import heapify, heappop, heappush

__all__ = ["NEVER", "SPOKE_SHIFT", "TimingWheel"]

NEVER = 2**62
"""No instant: later than any. Sums with durations (below 2**53) stay within a signed 64-bit column."""

SPOKE_SHIFT = 10
"""A spoke spans 1.024 s: a few thousand spokes for timeouts of minutes to hours, each opened within 1 s of firing."""

_DISARMED = -1

_SLOT = "i"
"""A spoke's entry: 4 bytes, where a list of ints takes 36. 2**31 slots would be 600 GB of sessions."""

_FEW = 64
"""So many are taken from the heap one by one; when more are due at one instant, sorting them takes half the time."""


class TimingWheel:
    """Slots armed for instants; see the module's theory of operation."""

    __slots__ = ("_armed", "_near", "_opened", "_order", "_spokes", "next_at")

    def __init__(self) -> None:
        self._armed = array("q")
        self._spokes: dict[int, array[int]] = {}
        self._order: list[int] = []  # heap of the numbers of the spokes in use
        self._near: list[tuple[int, int]] = []  # heap of (instant, slot) of opened spokes
        self._opened = -1  # spokes up to this number are opened
        self.next_at = NEVER
        """No armed slot has an earlier instant; nothing needs `expire` before it."""

    def arm(self, slot: int, at: int) -> None:
        """Arm `slot` for the instant `at` (ms, >= 0), in place of what it was armed for. `NEVER` disarms."""
        armed = self._armed
        if slot >= len(armed):
            armed.extend([_DISARMED] * (slot + 1 - len(armed)))
        if at >= NEVER:
            armed[slot] = _DISARMED
            return
        if armed[slot] == at:
            return  # its entry is there: a session that is touched again and again must not leave one each time
        armed[slot] = at
        spoke = at >> SPOKE_SHIFT
        if spoke <= self._opened:
            heappush(self._near, (at, slot))
        else:
            waiting = self._spokes.get(spoke)
            if waiting is None:
                self._spokes[spoke] = array(_SLOT, (slot,))
                heappush(self._order, spoke)
            else:
                waiting.append(slot)
        if at < self.next_at:
            self.next_at = at

    def arm_all(self, instants: Sequence[int]) -> None:
        """Arm every slot of a new wheel at once, slot 0 for the first instant; `NEVER` leaves one disarmed."""
        self._armed = armed = array("q", instants)
        spokes: defaultdict[int, list[int]] = defaultdict(list)
        for slot, at in enumerate(armed):
            spokes[at >> SPOKE_SHIFT].append(slot)
        for slot in spokes.pop(NEVER >> SPOKE_SHIFT, ()):
            armed[slot] = _DISARMED
        self._spokes = {spoke: array(_SLOT, slots) for spoke, slots in spokes.items()}
        self._order = sorted(spokes)
        self.next_at = self._order[0] << SPOKE_SHIFT if self._order else NEVER

    def disarm(self, slot: int) -> None:
        """Forget what `slot` is armed for."""
        if slot < len(self._armed):
            self._armed[slot] = _DISARMED

    def expire(self, now: int) -> list[int]:
        """Return the slots armed for `now` or earlier, the earliest first, and disarm them."""
        while self._order and self._order[0] <= now >> SPOKE_SHIFT:
            self._open()
        armed, near = self._armed, self._near
        due: list[int] = []
        while near and near[0][0] <= now:
            if len(due) == _FEW:
                came = sorted(entry for entry in near if entry[0] <= now)
                self._near = near = [entry for entry in near if entry[0] > now]
                heapify(near)
            else:
                came = [heappop(near)]
            for at, slot in came:
                if armed[slot] == at:
                    armed[slot] = _DISARMED
                    due.append(slot)
        self.next_at = near[0][0] if near else self._order[0] << SPOKE_SHIFT if self._order else NEVER
        return due

    def peek(self) -> tuple[int, int] | None:
        """Return the (instant, slot) that fires first, or None when nothing is armed."""
        armed, near = self._armed, self._near
        while True:
            while near and armed[near[0][1]] != near[0][0]:
                heappop(near)
            if near:
                # The spokes that are still closed lie behind every opened one.
                self.next_at = near[0][0]
                return near[0]
            if not self._order:
                self.next_at = NEVER
                return None
            self._open()

    def _open(self) -> None:
        spoke = heappop(self._order)
        armed = self._armed
        came = [(at, slot) for slot in self._spokes.pop(spoke) if (at := armed[slot]) >> SPOKE_SHIFT == spoke]
        self._opened = spoke
        if len(came) > 64:
            self._near.extend(came)
            heapify(self._near)
        else:
            for entry in came:
                heappush(self._near, entry)
