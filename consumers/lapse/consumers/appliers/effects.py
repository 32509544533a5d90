"""What is an effect of an ending?

Something that is done once a session has ended, outside of Kafka. It is done at least once: a crash, a rebalance, a
repeated ending do it again, so doing it again must change nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lapse.schemas import SessionEnded

__all__ = ["Effect", "Ending", "Ends", "Rejected", "Unavailable"]

Ends = Callable[[], Awaitable[Mapping[int, int]]]
"""Asks for the ends of the expiries topic: partition -> the offset after its last record."""


@dataclass(frozen=True, slots=True)
class Ending:
    """An ending, where it stands in the expiries topic, and its bytes."""

    ended: SessionEnded
    partition: int
    offset: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Rejected:
    """An ending whose effect cannot be had, and why: it is dead-lettered, and the applier goes on."""

    ending: Ending
    reason: str


class Unavailable(Exception):
    """The effect cannot be had now (its store does not answer). Nothing is committed; it is tried again."""


class Effect(Protocol):
    """What an applier does with endings."""

    @property
    def entries(self) -> int:
        """Return how much it keeps in memory, for the report."""

    @property
    def done(self) -> int:
        """Return how many sessions it has ended where they live, for the report."""

    async def start(self, ends: Ends) -> None:
        """Connect, and refuse what can never work.

        Raises:
            ConfigError: the store is not what it was said to be.
            Unavailable: it does not answer; start is called again.
        """

    async def apply(self, endings: Sequence[Ending]) -> Sequence[Rejected]:
        """Return once every ending has had its effect, but for those returned.

        Raises:
            Unavailable: try the same endings again later.
        """

    async def stop(self) -> None:
        """Let go of everything."""
