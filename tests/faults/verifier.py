"""Is what the topics say right, whatever broke meanwhile? A process of its own that reads topics and nothing else.

    python -m tests.faults.verifier --kafka .. --prefix .. --partitions N --key KEY [--truth FILE] [--patience S]

It prints one JSON object; `problems` must be empty. It holds the topics to four things:

- `lapse.expiries` to an independent recomputation (lapse.pipeline.demo.recompute shares nothing with the engine):
  nothing ended early or otherwise than by the rules, nothing is missing. What is missing may still be on its way after
  a healing: it reads again until nothing is, for so many seconds at most.
- each ending to itself: one id and the same bytes however often it was told, nothing after it of the same session, no
  watermark before it that vouched for it.
- `lapse.state` to `lapse.activity`: the state of each marker is what a new engine has that applies the log up to the
  marker's offset. A zombie that had written into it, or a checkpoint that was torn, would show here.
- the endings to the truth, where the load wrote it: a session that was used all the while has not ended as idle.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import orjson
from aiokafka import ConsumerRecord

from lapse.pipeline.demo.recompute import RawTopics, Verdict, recompute
from lapse.pipeline.demo.summary import rules_of
from lapse.pipeline.engine import PartitionEngine
from lapse.pipeline.processor.reading import read_to_end
from lapse.pipeline.processor.restore import engine_settings
from lapse.pipeline.settings import Settings
from lapse.schemas import SessionEnded, TopicNames, ending_id, parse_expiry

from tests.faults.load import STEADY, TOUCH_INTERVAL_MS

__all__ = ["Report", "verify"]

Report = dict[str, Any]

# What a touch may lose on its way without a fault of ours: it cools for the publisher's interval.
_TOLERANCE_MS: Final = TOUCH_INTERVAL_MS + 250
_SHOWN: Final = 10
# Cooling in the publisher, the way into the log, and the pauses of a process on a machine that does much else. Within
# it a touch may come after its session was over by the log, and no rule is broken.
_PUBLISHING_MS: Final = 2_000
# FAULTS.md: converged within 60 s of a healing; and faults last up to as long again.
_COPIED_WITHIN_MS: Final = 120_000
_SETTLED_WITHIN_MS: Final = 120_000


async def _records(settings: Settings, topic: str, partitions: int) -> list[ConsumerRecord]:
    found: list[ConsumerRecord] = []
    async for _, records in read_to_end(settings.kafka, "verifier", topic, range(partitions)):
        found += records
    return found


async def verify(settings: Settings, truth: Path | None, patience_s: float) -> Report:
    """Return the report; it reads again for as long as something is missing and patience lasts."""
    deadline = time.monotonic() + patience_s
    began = time.monotonic()
    topics = TopicNames(settings.prefix)
    rules = replace(rules_of(settings), copied_within_ms=_COPIED_WITHIN_MS, settled_within_ms=_SETTLED_WITHIN_MS)
    while True:
        # State first, for a marker must not be of an offset that has not been read yet.
        state = await _read_state(settings, topics)
        activity = await _records(settings, topics.activity, settings.partitions)
        revocations = await _records(settings, topics.revocations, settings.partitions)
        policies = await _records(settings, topics.policies, 1)
        expiries = await _records(settings, topics.expiries, settings.partitions)
        ends = _ends(activity)
        expiries = [one for one in expiries if _explained(one, ends)]
        verdict = recompute(RawTopics(activity, revocations, policies, expiries), rules)
        if not verdict.missed or time.monotonic() > deadline:
            break
        await asyncio.sleep(1)
    problems = [
        *(f"early: {one.session}: {one.what}" for one in verdict.early),
        *(f"missed: {one.session}: {one.what}" for one in verdict.missed),
        *_repeated(expiries),
        *_state(settings, state, activity),
    ]
    lived: Report = {}
    if truth is not None:
        lived, found = _held_against_life(truth, expiries, verdict)
        problems += found
    if problems and truth is not None:
        _keep(truth.parent, activity=activity, revocations=revocations, expiries=expiries)
    return {
        "problems": problems[:_SHOWN],
        "problem_count": len(problems),
        "early": len(verdict.early),
        "missed": len(verdict.missed),
        "sessions": verdict.sessions,
        "endings": {str(cause): count for cause, count in verdict.endings.items()},
        "told_again": _told_again(expiries),
        "activity_records": len(activity),
        "silence_max_ms": _silences(expiries),
        "healed_after_s": round(time.monotonic() - began, 1),
        **lived,
    }


def _keep(directory: Path, **topics: Iterable[ConsumerRecord]) -> None:
    """Write down what the problems were found in, for whoever looks for their cause: the topics are soon gone."""
    for topic, records in topics.items():
        with (directory / f"evidence-{topic}.jsonl").open("w") as file:
            for one in records:
                value = None if one.value is None else one.value.decode("utf-8", "backslashreplace")
                row = {"partition": one.partition, "offset": one.offset, "at": one.timestamp, "value": value}
                file.write(json.dumps(row) + "\n")


def _ends(activity: Iterable[ConsumerRecord]) -> dict[int, int]:
    ends: dict[int, int] = {}
    for one in activity:
        ends[one.partition] = max(ends.get(one.partition, -1), one.offset)
    return ends


def _explained(record: ConsumerRecord, ends: dict[int, int]) -> bool:
    """Return whether what settled the ending was among the activity that has been read."""
    value = orjson.loads(record.value)
    return bool(value["type"] != "session.ended" or value["evidence"]["offset"] <= ends.get(record.partition, -1))


def _endings(expiries: Iterable[ConsumerRecord]) -> Iterator[tuple[ConsumerRecord, SessionEnded]]:
    for record in expiries:
        parsed = parse_expiry(record.value)
        if isinstance(parsed, SessionEnded):
            yield record, parsed


def _repeated(expiries: Sequence[ConsumerRecord]) -> Iterator[str]:
    """Tell of endings that are not one per session, and of watermarks that vouched for what was not out yet."""
    first: dict[str, bytes] = {}
    vouched: dict[int, int] = {}
    for record in sorted(expiries, key=lambda one: (one.partition, one.offset)):
        value = orjson.loads(record.value)
        if value["type"] == "watermark":
            vouched[record.partition] = max(vouched.get(record.partition, 0), value["as_of"])
            continue
        session = value["session"]
        if value["id"] != ending_id(session):
            yield f"id: {session} ended under the id {value['id']}"
        if session not in first and value["decided_at"] < vouched.get(record.partition, 0):
            yield f"watermark: {session}, decided at {value['decided_at']}, came after a watermark that vouched for it"
        if first.setdefault(session, record.value) != record.value:
            yield f"repeated: {session} came out again with other fields"


def _told_again(expiries: Iterable[ConsumerRecord]) -> int:
    sessions = [one.session for _, one in _endings(expiries)]
    return len(sessions) - len(set(sessions))


def _silences(expiries: Iterable[ConsumerRecord]) -> dict[str, int]:
    """Return, by partition, the longest time between two records of lapse.expiries (a watermark comes each second)."""
    times: defaultdict[int, list[int]] = defaultdict(list)
    for record in sorted(expiries, key=lambda one: (one.partition, one.offset)):
        times[record.partition].append(record.timestamp)
    return {
        str(number): max((after - before for before, after in pairwise(at)), default=0)
        for number, at in sorted(times.items())
    }


async def _read_state(settings: Settings, topics: TopicNames) -> dict[int, dict[bytes, bytes | None]]:
    saved: dict[int, dict[bytes, bytes | None]] = defaultdict(dict)
    async for number, records in read_to_end(settings.kafka, "verifier", topics.state, range(settings.partitions)):
        for record in records:
            saved[number].pop(record.key, None)
            saved[number][record.key] = record.value
    return saved


def _state(
    settings: Settings, saved: dict[int, dict[bytes, bytes | None]], activity: Sequence[ConsumerRecord]
) -> list[str]:
    """Compare each partition's saved state with that of a new engine that has read the log."""
    problems = []
    for number, state in saved.items():
        rules = engine_settings(settings, settings.worker_key, number)
        restored = PartitionEngine.restore(rules, state.items())
        if restored is None:
            problems.append(f"state: partition {number} has no marker")
            continue
        log = sorted((one for one in activity if one.partition == number), key=lambda one: one.offset)
        replayed = PartitionEngine(rules)
        replayed.apply([one for one in log if one.offset < restored.offset])
        differing = _sessions(restored) ^ _sessions(replayed)
        if differing:
            problems.append(f"state: partition {number} at offset {restored.offset} differs: {sorted(differing)[:3]}")
    return problems


def _sessions(engine: PartitionEngine) -> set[tuple[str, int, int, bool]]:
    table = engine.sessions.table
    return {
        (session, table.started_at[slot], table.last_seen_at[slot], table.is_live(slot))
        for session, slot in table.slot_of.items()
        if table.is_live(slot)
    }


def _held_against_life(truth: Path, expiries: Sequence[ConsumerRecord], verdict: Verdict) -> tuple[Report, list[str]]:
    """Hold the endings against what people really did. All clocks are this machine's."""
    lines = [json.loads(line) for line in truth.read_text().splitlines()]
    summary, people = lines[0], lines[1:]
    endings = {one.session: one for _, one in _endings(expiries)}
    problems: list[str] = []
    steady = 0
    for person in people:
        ended = endings.get(person["session"])
        if ended is None or ended.cause != "idle":
            continue
        # The last touch that this ending must have known of: it had the time to reach the log before that was over.
        in_time = ended.due_at - _PUBLISHING_MS
        before_due = [at for at in [person["started_at"], *person["touched_at"]] if at < in_time]
        known_until = max(before_due, default=0)
        if ended.last_seen_at < known_until - _TOLERANCE_MS:
            problems.append(
                f"life: {person['session']} ({person['policy']}) ended as idle, last seen at {ended.last_seen_at}, "
                f"but was used at {known_until}"
            )
        if person["policy"] == STEADY.name and ended.due_at < summary["stopped_at"]:
            problems.append(f"life: {person['session']} was steadily used, and ended as idle at {ended.due_at}")
        steady += person["policy"] == STEADY.name
    problems += [
        f"life: {session} was revoked, acknowledged, and has not ended"
        for session in summary["revoked"]
        if session not in endings
    ]
    if not summary["flushed"] or summary["dropped"]:
        problems.append(f"life: the publisher has not got rid of everything: {summary['dropped']} dropped")
    return {"people": len(people), "touches": summary["touches"], "steady_ended": steady}, problems


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--patience", type=float, default=60.0)
    given = parser.parse_args()
    told = asyncio.run(
        verify(
            Settings(kafka=given.kafka, prefix=given.prefix, partitions=given.partitions, worker_key=given.key),
            given.truth,
            given.patience,
        )
    )
    print(json.dumps(told))
