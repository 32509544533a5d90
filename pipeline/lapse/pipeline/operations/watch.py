"""Which sessions end, as it happens?

A repeated ending (a worker was restarted) is the same ending with the same id; it is shown once. What cannot be read is
logged and left out.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Final

from lapse.pipeline.operations.reading import follow
from lapse.pipeline.settings import Settings
from lapse.schemas import BadRecord, SessionEnded, TopicNames, parse_expiry

__all__ = ["ENDINGS_KNOWN_MAX", "Ending", "watch_endings"]

_log = logging.getLogger(__name__)

# Endings are repeated from the last checkpoint on, at most some seconds' worth: 65,536 ids (about 8 MB) cover more than
# ten seconds at 5,000 endings a second. What is repeated later than that is shown again.
ENDINGS_KNOWN_MAX: Final = 65_536


@dataclass(frozen=True, slots=True)
class Ending:
    """An ending and where it stands in the expiries topic; `appended_at` is epoch ms of the broker's clock."""

    ended: SessionEnded
    partition: int
    offset: int
    appended_at: int

    @property
    def late_ms(self) -> int:
        """Return how long after its due instant the ending was in the log."""
        return self.appended_at - self.ended.due_at


async def watch_endings(
    settings: Settings, *, since_ms: int | None = None, ready: Callable[[], None] = lambda: None
) -> AsyncGenerator[Ending]:
    """Yield the endings as they are appended, for ever; in each partition in the log's order.

    Args:
        since_ms: begin with those appended at or after this instant (epoch ms, the broker's clock); None: from now on.
        ready: is called once the beginning is fixed: what is appended after that will be seen.

    Raises:
        ConfigError: there is no expiries topic.
        RuntimeFault: no broker answers at the start.
    """
    topic = TopicNames(settings.prefix).expiries
    known: dict[str, None] = {}
    async with contextlib.aclosing(follow(settings, topic, since_ms=since_ms, ready=ready)) as records:
        async for record in records:
            try:
                expiry = parse_expiry(record.value)
            except BadRecord as bad:
                # A tombstone is not bad: the topic is compacted, and nothing rests on one.
                if record.value is not None:
                    _log.warning("%s/%d, offset %d: %s", topic, record.partition, record.offset, bad.reason)
                continue
            if not isinstance(expiry, SessionEnded) or expiry.id in known:
                continue
            known[expiry.id] = None
            if len(known) > ENDINGS_KNOWN_MAX:
                del known[next(iter(known))]
            yield Ending(expiry, record.partition, record.offset, record.timestamp)
