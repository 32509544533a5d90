"""How does an engine become records of `lapse.state`, and records an engine?

    key                  value
    "c" + chunk number   a chunk of the session table (table.py has its layout)
    "r" + revocation id  a kept cutoff: {"at": .., "scope": [..]}, or null once it is forgotten
    "m"                  the marker, the last of each checkpoint (JSON): what there is one of, the input offset, and how
                         many chunks and cutoffs belong to it, so that a state topic with a piece missing is never read
                         as fewer sessions

A checkpoint is one transaction, so the latest record of each key belongs to the latest marker.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import orjson

from lapse.pipeline.engine.effects import Checkpoint
from lapse.schemas import InvariantError

if TYPE_CHECKING:
    from lapse.pipeline.engine.core import PartitionEngine

__all__ = ["MARKER_KEY", "load_snapshot", "save_snapshot"]

MARKER_KEY = b"m"
_VERSION = 1
_WHAT_TO_DO = "Restore the state topic, or delete it and the group's offsets to rebuild from the activity topic"


def save_snapshot(engine: PartitionEngine) -> Checkpoint:
    """Return the changes since the last snapshot, and clear the marks of change."""
    sessions = engine.sessions
    records: list[tuple[bytes, bytes | None]] = [*sessions.table.cut()]
    cutoffs = sessions.cutoffs
    for revocation in sorted(cutoffs.dirty):
        kept = cutoffs.get(revocation)
        value = None if kept is None else orjson.dumps({"at": kept[0], "scope": kept[1]})
        records.append((b"r" + revocation.encode(), value))
    cutoffs.dirty.clear()
    marker: dict[str, Any] = {
        "version": _VERSION,
        "offset": engine.offset,
        "append": None if engine.applied is None else engine.applied[1],
        "applied": None if engine.applied is None else engine.applied[0],
        "stamp": engine.stamp,
        "epoch": engine.tick_epoch,
        "raised": engine.raised,
        "clock": engine.clock.save(),
        "hold": sessions.hold.save(),
        "policies": sessions.book.save(),
        "origins": [[partition, *origin] for partition, origin in engine.origins.items()],
        "chunks": len(sessions.table.dirty),
        "cutoffs": len(cutoffs),
    }
    if sessions.shortened.at >= 0:
        marker["shortened"] = sessions.shortened.save()
    records.append((MARKER_KEY, orjson.dumps(marker)))
    return Checkpoint(engine.offset, records)


def load_snapshot(engine: PartitionEngine, records: Iterable[tuple[bytes, bytes | None]]) -> PartitionEngine | None:
    """Load the latest snapshot into a new engine and return it, or None when there is no marker."""
    latest = dict(records)
    value = latest.pop(MARKER_KEY, None)
    if value is None:
        return None
    try:
        return _load(engine, latest, orjson.loads(value))
    except (ValueError, KeyError, IndexError, TypeError, struct.error) as broken:
        raise InvariantError(
            f"the state of partition {engine.settings.partition} is unreadable: {broken!r}. {_WHAT_TO_DO}"
        ) from broken


def _load(engine: PartitionEngine, latest: dict[bytes, bytes | None], marker: dict[str, Any]) -> PartitionEngine:
    if marker["version"] != _VERSION:
        raise InvariantError(
            f"the state of partition {engine.settings.partition} has version {marker['version']}, this worker reads "
            f"{_VERSION}: run the newer worker"
        )
    sessions = engine.sessions
    sessions.book.load(marker["policies"])
    if "shortened" in marker:
        sessions.shortened.load(marker["shortened"])
    sessions.table.grow(marker["chunks"])
    chunks = cutoffs = 0
    for key, value in latest.items():
        if value is None:
            continue
        if key[:1] == b"c" and int(key[1:]) < marker["chunks"]:
            sessions.table.load(int(key[1:]), value)
            chunks += 1
        elif key[:1] == b"r":
            kept = orjson.loads(value)
            sessions.cutoffs.add(key[1:].decode(), tuple(kept["scope"]), kept["at"])
            cutoffs += 1
    # More cutoffs are none too many: one that was forgotten comes back where its tombstone is lost in a compaction, and
    # its time is over, so that the next record forgets it again.
    if chunks != marker["chunks"] or cutoffs < marker["cutoffs"]:
        raise InvariantError(
            f"the state of partition {engine.settings.partition} is torn: the marker names {marker['chunks']} chunks "
            f"and {marker['cutoffs']} cutoffs, the topic has {chunks} and {cutoffs}. {_WHAT_TO_DO}"
        )
    sessions.cutoffs.dirty.clear()
    sessions.hold.load(marker["hold"])
    engine.next_offset, engine.tick_epoch, engine.stamp = marker["offset"], marker["epoch"], marker["stamp"]
    # Markers of before have no `applied`: then it is the offset below, which is wrong only where a transaction ended.
    engine.load_applied(marker.get("applied", marker["offset"] - 1), marker["append"])
    engine.raised = tuple(marker["raised"])
    engine.clock.load(marker["clock"])
    engine.origins = {partition: (offset, entry) for partition, offset, entry in marker["origins"]}
    sessions.time = engine.clock.time  # by which timers are set: what is past is not warned of
    sessions.rebuild()
    return engine
