"""May a session's tokens live longer than its absolute limit says now?

A denial lasts until the absolute limit would have ended the session anyway, for no token of it is good after that
(DESIGN.md section 3). Where a policy shortens the limit, the tokens that are out were still made for the longer one. So
the longest limit that was shortened is remembered, and by when: sessions that started until then are denied by it.

One pair is kept for a partition, not one for each class of sessions: a denial that is kept for longer than it must
costs a guard its 130 bytes for that time, and limits are shortened a few times a year (docs/adr/0012).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Shortened"]


@dataclass(slots=True)
class Shortened:
    """What a partition remembers of absolute limits that were shortened.

    Attributes:
        at: stamp of the last policy that shortened one for a session that was live; -1: none did.
        longest_ms: the longest of the limits that were shortened; None: one was no limit at all.
    """

    at: int = -1
    longest_ms: int | None = 0

    def note(self, stamp: int, before: Iterable[tuple[int | None, int | None]]) -> None:
        """Take in what a policy changed: (absolute limit before, and now), in ms, None for no limit."""
        longer = [was for was, now in before if now is not None and (was is None or was > now)]
        if not longer:
            return
        known = [self.longest_ms, *longer]
        self.longest_ms = None if None in known else max(one for one in known if one is not None)
        self.at = stamp

    def limit_ms(self, started_at: int, absolute_ms: int) -> int | None:
        """Return the longest absolute limit that a session with the given one has had; None: it had none."""
        if started_at > self.at:
            return absolute_ms
        return None if self.longest_ms is None else max(self.longest_ms, absolute_ms)

    def save(self) -> dict[str, int | None]:
        """Return the state for a checkpoint."""
        return asdict(self)

    def load(self, state: dict[str, Any]) -> None:
        """Take the state of a checkpoint back."""
        self.at, self.longest_ms = state["at"], state["longest_ms"]
