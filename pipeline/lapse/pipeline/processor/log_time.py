"""Where does the log's clock certainly stand, as seen from here?

An owner wants to tick at the instant at which something is due by the log's clock, which it does not have. What it has
are its own appends: each was sent at `sent_ms` and acknowledged at `acked_ms` of its monotonic clock, and the broker
says at which instant `appended_at` it was appended in between. So

    appended_at - acked_ms  <=  log clock - monotonic clock  <  appended_at + 1 - sent_ms

Log time is that clock with its steps taken out (engine/log_clock.py). Once the engine has read two ticks of this owner,
it can say what log time a tick will give that is sent now (`disciplined`); that is then the estimate, for it is what
the engine will go by. Before, it is the bound above, corrected by the steps that the engine knows of.

The bound is the greatest seen, so that it is never ahead: a tick that is sent when the estimate
reaches a due instant comes back with a stamp that is not before it. It lags by the acknowledgement's way back, about
a millisecond. The bound is lowered by what two quartz clocks may drift apart, and dropped when an upper bound falls
below it: then the broker's clock went back.

A wrong estimate costs lateness, or a tick too many. It ends nobody: the log's own stamps decide. But the age of a
forwarded record is counted by it, and one that is too high would end a session. So as long as the engine cannot say
log time, and a step may be among what it has not read, an age goes by the lesser of the bound and the wall clock
(`surely_at`): too low an age makes a session younger, late at worst.
"""

import asyncio
from collections.abc import Callable
from typing import Final

__all__ = ["LogTime"]

# Two clocks of 250 ppm each, in opposite directions; quartz is rated 20 to 100 ppm.
DRIFT_MAX: Final = 500e-6


class LogTime:
    """The estimate for one partition's log, fed by the acknowledgements of appends to it."""

    __slots__ = ("_ahead_ms", "_disciplined", "_known", "_observed_ms", "_offset_ms")

    def __init__(
        self,
        disciplined: Callable[[float], float | None] = lambda _: None,
        offset_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        """Args: disciplined, offset_ms: `time_at` and `clock_offset_ms` of the engine."""
        self._disciplined = disciplined
        self._offset_ms = offset_ms
        self._ahead_ms = 0.0
        self._observed_ms = 0.0
        self._known = asyncio.Event()

    def observe(self, *, sent_ms: float, acked_ms: float, appended_at: int) -> None:
        """Learn from one append.

        Args:
            sent_ms: monotonic clock, read before the append was handed to the client.
            acked_ms: monotonic clock, read after its acknowledgement came; >= sent_ms.
            appended_at: the append time that the broker gave it, epoch ms of the log's clock.
        """
        lowest = appended_at - acked_ms
        if self._known.is_set():
            believed = self._ahead_ms - DRIFT_MAX * (acked_ms - self._observed_ms)
            went_back = appended_at + 1 - sent_ms < believed
            lowest = lowest if went_back else max(lowest, believed)
        self._ahead_ms = lowest
        self._observed_ms = acked_ms
        self._known.set()

    @property
    def known(self) -> bool:
        """Whether anything has been observed yet."""
        return self._known.is_set()

    async def wait_known(self) -> None:
        """Wait for the first observation."""
        await self._known.wait()

    def at(self, mono_ms: float) -> float:
        """Return the log time that has certainly been reached at this reading of the monotonic clock.

        Defined once `known`.
        """
        disciplined = self._disciplined(mono_ms)
        return mono_ms + self._ahead_ms + self._offset_ms() if disciplined is None else disciplined

    def surely_at(self, mono_ms: float, wall_at: int) -> float:
        """Return log time as an age may go by it: what was set, the broker's clock or this machine's, adds nothing.

        Defined once `known`.

        Args:
            mono_ms: now, by the monotonic clock.
            wall_at: now, by the wall clock, epoch ms.
        """
        disciplined = self._disciplined(mono_ms)
        return min(self.at(mono_ms), wall_at) if disciplined is None else disciplined
