"""Is what the topics say right, whatever broke meanwhile? A process of its own that reads topics and nothing else.

    python -m tests.faults.verifier --kafka .. --prefix .. --partitions N --key KEY [--truth FILE] [--patience S]
        [--away S]

It prints one JSON object; `problems` must be empty. It holds the topics to five things:

- `lapse.expiries` to an independent recomputation (lapse.pipeline.demo.recompute shares nothing with the engine):
  nothing ended early or otherwise than by the rules, nothing is missing.
- each ending to the time that a healing may take: it stands in the log LATE_MAX_MS after its session was over, or as
  long after a fault that lasted for `--away`.
- each ending to itself: one id and the same bytes however often it was told, no watermark before it that vouched for
  it.
- `lapse.state` to `lapse.activity` (states.py): each partition's state is what a new engine has that applies the log up
  to the marker's offset. A zombie that had written into it, or a checkpoint that was torn, would show here.
- the endings to the truth, where the load wrote it (life.py).

What is missing may still be on its way after a healing: it reads again until nothing is wrong, or patience has ended.
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

from lapse.pipeline.demo.recompute import RawTopics, TopicRecord, published, recompute
from lapse.pipeline.demo.summary import rules_of
from lapse.pipeline.settings import Settings
from lapse.schemas import Cause, SessionEnded, TopicNames, ending_id, parse_expiry

from tests.faults.life import held_against_life
from tests.faults.states import differences, read_state, read_topic

__all__ = ["LATE_MAX_MS", "Report", "late", "latest_ms", "repeated", "verify"]

Report = dict[str, Any]

# FAULTS.md: converged within 60 s of a healing.
LATE_MAX_MS: Final = 60_000
_SHOWN: Final = 10
# What the recomputation forgives, for it has no figure of how late an ending is: the longest fault and the above.
_COPIED_WITHIN_MS: Final = 120_000
_SETTLED_WITHIN_MS: Final = 120_000


async def verify(settings: Settings, truth: Path | None, patience_s: float, away_s: float) -> Report:
    """Return the report; it reads again for as long as something is wrong and patience lasts."""
    began = time.monotonic()
    while True:
        report, topics = await _read_and_judge(settings, truth, int(away_s * 1000))
        if not report["problems"] or time.monotonic() - began > patience_s:
            break
        await asyncio.sleep(1)
    if report["problems"] and truth is not None:
        _keep(truth.parent, activity=topics.activity, revocations=topics.revocations, expiries=topics.expiries)
    return report | {"healed_after_s": round(time.monotonic() - began, 1)}


async def _read_and_judge(settings: Settings, truth: Path | None, away_ms: int) -> tuple[Report, RawTopics]:
    names = TopicNames(settings.prefix)
    # State first, for a marker must not be of an offset that has not been read yet.
    state = await read_state(settings)
    activity = await read_topic(settings, names.activity, settings.partitions)
    revocations = await read_topic(settings, names.revocations, settings.partitions)
    policies = await read_topic(settings, names.policies, 1)
    ends = _ends(activity)
    expiries = [one for one in await read_topic(settings, names.expiries, settings.partitions) if _explained(one, ends)]
    topics = RawTopics(activity, revocations, policies, expiries)
    rules = replace(rules_of(settings), copied_within_ms=_COPIED_WITHIN_MS, settled_within_ms=_SETTLED_WITHIN_MS)
    verdict = recompute(topics, rules)
    lived, unlike_life = held_against_life(truth, _by_session(expiries)) if truth is not None else ({}, [])
    too_late = late(expiries, settings.grace_ms, away_ms)
    problems = [
        *(f"early: {one.session}: {one.what}" for one in verdict.early),
        *(f"missed: {one.session}: {one.what}" for one in verdict.missed),
        *too_late,
        *repeated(expiries),
        *differences(settings, state, activity),
        *unlike_life,
    ]
    return {
        "problems": problems[:_SHOWN],
        "problem_count": len(problems),
        "early": len(verdict.early),
        "missed": len(verdict.missed),
        "late": len(too_late),
        "latest_ms": max(latest_ms(expiries, settings.grace_ms).values(), default=0),
        "sessions": verdict.sessions,
        "endings": {str(cause): count for cause, count in verdict.endings.items()},
        "told_again": _told_again(expiries),
        "activity_records": len(activity),
        "silence_max_ms": _silences(expiries),
        **lived,
    }, topics


def _keep(directory: Path, **topics: Iterable[TopicRecord]) -> None:
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


def _by_session(expiries: Iterable[ConsumerRecord]) -> dict[str, SessionEnded]:
    return {one.session: one for _, one in _endings(expiries)}


def latest_ms(expiries: Sequence[ConsumerRecord], grace_ms: int) -> dict[str, int]:
    """Return, by session, how long after it was over its ending first stood in the log.

    Who is revoked before the login is over with it.
    """
    found = {}
    for session, (ended, appended_at) in published(expiries).items():
        over_at = max(ended.due_at, ended.started_at) + (grace_ms if ended.cause is Cause.IDLE else 0)
        found[session] = appended_at - over_at
    return found


def late(expiries: Sequence[ConsumerRecord], grace_ms: int, away_ms: int) -> list[str]:
    """Tell of the endings that came later than a healing may take after a fault of `away_ms`."""
    return [
        f"late: the ending of {session} came {ms} ms after it was over"
        for session, ms in latest_ms(expiries, grace_ms).items()
        if ms > away_ms + LATE_MAX_MS
    ]


def repeated(expiries: Sequence[ConsumerRecord]) -> Iterator[str]:
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--patience", type=float, default=60.0)
    parser.add_argument("--away", type=float, default=0.0, help="how long the fault lasted, seconds")
    given = parser.parse_args()
    told = asyncio.run(
        verify(
            Settings(kafka=given.kafka, prefix=given.prefix, partitions=given.partitions, worker_key=given.key),
            given.truth,
            given.patience,
            given.away,
        )
    )
    print(json.dumps(told))
