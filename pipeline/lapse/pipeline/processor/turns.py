"""How does a worker get the first endings of a burst out, when all its partitions have thousands to end at once?

To decide what 12,500 due sessions come to takes some 50 ms of the loop. Were all partitions to do that one after the
other, as their ticks come back, the first ending would wait for all of them, though it was decided by the first. So
partitions take turns at applying, and a turn ends when its first endings are out (publishing.py), or have had
HEAD_START_S for it. Without a burst nobody waits: between taking a turn and leaving it nothing is awaited.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

__all__ = ["HEAD_START_S", "Turns"]

# An append takes some 3 ms. Where a broker does not answer, the partitions of others must not wait for it.
HEAD_START_S: Final = 0.025


class Turns:
    """The turns of one worker's partitions."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[Callable[[], None]]:
        """Wait for a turn; give what leaves it, which may be called early, and more than once."""
        await self._lock.acquire()
        mine = True

        def leave() -> None:
            nonlocal mine
            if mine:
                mine = False
                self._lock.release()

        try:
            yield leave
        finally:
            leave()
