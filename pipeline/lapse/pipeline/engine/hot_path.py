"""How are touches applied when there are many, and memory is slow?

Nearly all touches are of a known, live session, in time, and move `last_seen_at` and nothing else. With a million
sessions what such a touch costs is waiting for memory: the entry of the look-up, the reference it is compared with, the
subject, the columns, each in a line that is in no cache. One touch after the other, the waits add up. Here each step is
taken for all touches of a run before the next, in loops of C that are so short that the processor has several
waits under way at once. With 3,000,000 sessions that takes a third off a touch (measured), with few it costs nothing.

All touches of a run have one stamp, and nothing is due at it: so between them only columns are written, and what has
been read for all of them beforehand holds. Two touches of one session are no exception: `last_seen_at` is read again
where it is written, and `live_until` only ever grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

from lapse.pipeline.engine.fast_decode import PackedRow, Plain
from lapse.pipeline.engine.table import SessionTable

__all__ = ["FEW", "TOGETHER", "touch_together"]

TOGETHER = 256
"""So many records are decoded and applied together: some 100 KB, which the processor's own cache holds."""

FEW = 8
"""Fewer touches are as quick one by one."""


def touch_together(
    table: SessionTable, touches: Sequence[Plain | PackedRow | None], stamp: int, age_max_ms: int
) -> int:
    """Apply touches up to the first that is not as the module says, and return how many that were.

    Args:
        table: nothing in it is due at `stamp`.
        touches: at least two, in log order; what is not a single touch or an entry ends them.
        stamp: of all of them.
        age_max_ms: ages above it are not decided here.
    """
    try:
        sessions = [touch.session for touch in touches]  # type: ignore[union-attr]  # raises AttributeError
        # A string keeps its hash. With all of them at hand the look-ups are short enough to overlap: 0.2 us a touch.
        list(map(hash, sessions))
        slots: tuple[int, ...] = itemgetter(*sessions)(table.slot_of)
    except (AttributeError, KeyError):
        return 0
    at = itemgetter(*slots)
    if list(at(table.subjects)) != [touch.subject for touch in touches]:  # type: ignore[union-attr]  # not None, see above
        return 0
    tenants = [touch.tenant for touch in touches]  # type: ignore[union-attr]
    if (list(at(table.tenants)) != tenants) if table.tenanted else (tenants.count(None) != len(tenants)):
        return 0
    last_seen_at, dirty, renew = table.last_seen_at, table.dirty, table.renew
    at(last_seen_at)  # only to have them in the cache
    done = 0
    for touch, slot, live_until in zip(touches, slots, at(table.live_until), strict=True):
        if (
            (stamp < live_until or stamp < renew(slot))
            and 0 <= (age_ms := touch.age_ms) <= age_max_ms  # type: ignore[union-attr]
            and touch.since_ms is None  # type: ignore[union-attr]
            and touch.pause_ms is None  # type: ignore[union-attr]
            and touch.hold_ms is None  # type: ignore[union-attr]
        ):
            instant = stamp - age_ms
            if instant > last_seen_at[slot]:
                last_seen_at[slot] = instant
                dirty[slot >> 6] = 1
        else:
            return done
        done += 1
    return done
