"""Is each partition's saved state the one that its log makes? Compared is all of it, byte by byte.

A new engine reads the log up to the marker's offset, and what it cuts must be what stands in `lapse.state`: sessions,
those that ended and are remembered, orders, policies, the clock. Three records are the owner's and not the log's: under
which epoch it ticks, what it may trim, and up to where it has copied orders. A partition without a marker has no state,
and that is a difference too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from aiokafka import ConsumerRecord

from lapse.pipeline.engine import LogRecord, PartitionEngine
from lapse.pipeline.processor.checkpoints import COPIED_KEY, EPOCH_KEY
from lapse.pipeline.processor.reading import read_to_end
from lapse.pipeline.processor.restore import engine_settings
from lapse.pipeline.processor.trimming import MARKS_KEY
from lapse.pipeline.settings import Settings
from lapse.schemas import InvariantError, TopicNames

__all__ = ["State", "differences", "read_state", "read_topic"]

State = dict[bytes, bytes]
"""One partition's records of `lapse.state`, the latest of each key that has one."""

_OF_THE_OWNER: Final = {EPOCH_KEY, MARKS_KEY, COPIED_KEY}


async def read_topic(settings: Settings, topic: str, partitions: int) -> list[ConsumerRecord]:
    """Return all records of a topic, each partition's in log order."""
    found: list[ConsumerRecord] = []
    async for _, records in read_to_end(settings.kafka, "verifier", topic, range(partitions)):
        found += records
    return found


async def read_state(settings: Settings) -> dict[int, State]:
    """Return the saved state by partition. To be read before the log, which then reaches beyond each marker."""
    saved: dict[int, State] = {number: {} for number in range(settings.partitions)}
    for record in await read_topic(settings, TopicNames(settings.prefix).state, settings.partitions):
        saved[record.partition].pop(record.key, None)
        if record.value is not None:
            saved[record.partition][record.key] = record.value
    return saved


def differences(settings: Settings, saved: Mapping[int, State], activity: Iterable[ConsumerRecord]) -> list[str]:
    """Return what is wrong, at most one sentence for each partition."""
    logs: dict[int, list[ConsumerRecord]] = {number: [] for number in range(settings.partitions)}
    for record in activity:
        logs[record.partition].append(record)
    found = (_difference(settings, number, saved.get(number, {}), log) for number, log in logs.items())
    return [f"state: partition {number} {what}" for number, what in enumerate(found) if what]


def _difference(settings: Settings, number: int, saved: State, log: Sequence[LogRecord]) -> str:
    rules = engine_settings(settings, settings.worker_key, number)
    try:
        restored = PartitionEngine.restore(rules, saved.items())
    except InvariantError as torn:
        return f"cannot be restored: {torn}"
    if restored is None:
        return "has no marker"
    offset = restored.offset
    wanted = {key: value for key, value in saved.items() if key not in _OF_THE_OWNER}
    engine = PartitionEngine(rules)
    made: State = {}
    what = "is not a state of any reading of the log"
    before = [one for one in log if one.offset < offset]
    # One reading stops at the marker, or more than one where records wait there: their first may have moved the stamp.
    for records in [before, *([one] for one in log if one.offset >= offset)]:
        engine.apply(records)
        if engine.offset > offset:
            break
        if engine.offset < offset:
            continue
        for key, value in engine.cut().records:
            made.pop(key, None)
            if value is not None:
                made[key] = value
        if made == wanted:
            return ""
        differing = sorted(key for key in made.keys() | wanted.keys() if made.get(key) != wanted.get(key))
        shown = {key.decode(): (_short(wanted.get(key)), _short(made.get(key))) for key in differing[:3]}
        what = f"differs in {len(differing)} records (saved, by the log): {shown}"
    return f"at offset {offset} {what}"


def _short(value: bytes | None) -> str:
    return "nothing" if value is None else value[:600].decode("ascii", "backslashreplace")
