"""How often may checkpoints come, when each costs what a large state costs?

Under full load nearly every chunk of a state is dirty at each checkpoint, so its cost grows with the sessions: with
three million live, checkpoints each 2 s took more than half of a worker's time (measured: 145,000 touches a second
instead of 345,000). So the interval stretches until the cuts of all partitions take at most one part in PARTS_OF_TIME
of it. A cut encodes, and sending takes as long again, so that is a twentieth of a worker's time. What a crash costs
grows with it, up to INTERVAL_MAX_S of input to be applied again. Where little is dirty, cuts are short and the interval
is the setting. Until a partition has been cut for the first time, its cut is taken to be of all its sessions.
"""

from typing import Final

__all__ = ["INTERVAL_MAX_S", "PARTS_OF_TIME", "CheckpointPace"]

PARTS_OF_TIME: Final = 40
INTERVAL_MAX_S: Final = 15.0

# 64 sessions are encoded in 8 us (measured).
_CUT_S_A_SESSION: Final = 8e-6 / 64


class CheckpointPace:
    """One worker's pace; all its partitions share it."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._cuts: dict[int, float] = {}

    def begin(self, partition: int, sessions: int) -> None:
        """Count a partition that has not been cut yet, of so many sessions."""
        self._cuts[partition] = sessions * _CUT_S_A_SESSION

    def cut(self, partition: int, took_s: float) -> None:
        """Note how long the partition's last cut held the loop."""
        self._cuts[partition] = took_s

    def gave_up(self, partition: int) -> None:
        """Count the partition no more: it is another worker's."""
        self._cuts.pop(partition, None)

    @property
    def interval_s(self) -> float:
        """How long from one checkpoint of a partition to its next."""
        wanted = min(sum(self._cuts.values()) * PARTS_OF_TIME, INTERVAL_MAX_S)
        return max(self._interval_s, wanted)
