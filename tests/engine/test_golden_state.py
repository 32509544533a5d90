"""Goal: a worker of the next version reads the state that this one wrote.

Method: `golden/state-v<version>.json` holds the records of lapse.state as a released version wrote them, with what they
mean. The engine must restore each to that meaning for as long as the version is to be read. A file is written once, by
`REWRITE=1 pytest tests/engine/test_golden_state.py` while its version is not yet released; afterwards a change of the
format takes a new version, and a file beside the old one. So does what is added that workers
of before read over: `state-v1.1.json` has the offset of the last applied record besides.
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from lapse.pipeline.engine import EngineSettings, PartitionEngine
from lapse.schemas import InvariantError, sign

GOLDEN = Path(__file__).parent / "golden"
CURRENT = GOLDEN / "state-v1.1.json"
KEY = b"a key of golden files, 32 bytes.."
TOPIC = "lapse.activity"
START = 1_767_225_600_000


@dataclass(frozen=True)
class _Record:
    offset: int
    timestamp: int
    value: bytes | None


def settings() -> EngineSettings:
    return EngineSettings(
        partition=0, partitions=1, topic=TOPIC, worker_key=KEY, grace_ms=250, gap_ms=3_000, gap_grace_ms=5_000,
        age_max_ms=3_600_000, ended_memory_ms=3_600_000, violation_after_ms=2_000, session_life_max_ms=2_592_000_000,
        adopt_unknown=True,
    )  # fmt: skip


def log() -> list[_Record]:
    """Return a log that leaves one of everything in the state."""
    values: list[tuple[int, dict[str, Any]]] = []

    def control(at: int, record: dict[str, Any]) -> None:
        record["mac"] = sign(record, topic=TOPIC, partition=0, key=KEY)
        values.append((at, record))

    def about(at: int, kind: str, session: str, subject: str, **more: Any) -> None:
        values.append(
            (at, {"type": kind, "session": session, "subject": subject, "service": "web", "age_ms": 0, **more})
        )

    def tick(at: int, number: int) -> None:
        control(at, {"type": "clock.tick", "v": 1, "epoch": 3, "owner": "w", "mono_ms": number * 1_000,
                     "wall_at": START + at, "prev_ms": (number - 1) * 1_000, "ack_ms": (number - 1) * 1_000 + 3,
                     "up_ms": 60_000})  # fmt: skip

    def order(at: int, **target: Any) -> None:
        revocation = {"type": "revocation", "v": 1, "id": f"r-{at}", "reason": "admin", **target}
        control(at, {"type": "revocation.ordered", "v": 1, "at": START + at - 10, "revocation": revocation})

    tick(0, 1)
    policy = {"type": "policy", "v": 1, "name": "brief", "idle_ms": 2_000, "absolute_ms": 60_000, "warn_before_ms": 500}
    control(10, {"type": "policy.adopted", "v": 1, "version": 4, "policy": policy})
    for number in range(70):  # more than a chunk
        about(100, "session.started", f"s-{number}", f"u-{number % 50}", tenant="acme" if number % 2 else None)
    about(120, "session.started", "brief", "u-brief", policy="brief", attributes={"role": "admin"})
    about(150, "session.touched", "adopted", "u-adopted")
    about(200, "session.closed", "s-3", "u-3", tenant="acme")
    order(300, subject="u-gone")
    order(310, session="not-seen-yet", subject="u-later")
    about(320, "session.touched", "s-2", "u-2")
    tick(1_000, 2)
    tick(1_900, 3)
    tick(2_500, 4)
    about(2_600, "session.touched", "brief", "u-brief")
    tick(5_400, 5)
    about(5_500, "session.touched", "s-3", "u-3", tenant="acme")  # a violation
    tick(6_300, 6)
    return [_Record(number, START + at, orjson.dumps(value)) for number, (at, value) in enumerate(values)]


def meaning(engine: PartitionEngine) -> dict[str, Any]:
    """Return what the state says, and what comes of it later: the same ticks end the same sessions."""
    table = engine.sessions.table
    says: dict[str, Any] = {
        "offset": engine.offset, "stamp": engine.stamp - START, "epoch": engine.epoch, "live": engine.live_sessions,
        "sessions": sorted(
            [session, table.subjects[slot], table.tenants[slot], table.state[slot], table.started_at[slot] - START,
             table.last_seen_at[slot] - START]
            for session, slot in table.slot_of.items()
        ),
    }  # fmt: skip
    endings = []
    for number in range(1, 40):
        at = engine.stamp + 60_000
        record = {"type": "session.started", "session": f"later-{number}", "subject": "u-gone", "service": "web"}
        effects = engine.apply([_Record(engine.offset, at, orjson.dumps(record | {"age_ms": 300_000}))])
        endings += [[one.session, str(one.cause), one.due_at - START, one.policy] for one in effects.endings]
    says["later"] = endings
    return says


def written() -> dict[str, Any]:
    engine = PartitionEngine(settings())
    records: dict[bytes, bytes | None] = {}
    for record in log():
        engine.apply([record])
        for key, value in engine.cut().records:
            records.pop(key, None)
            records[key] = value
    return {
        "records": [
            [key.decode(), None if value is None else base64.b64encode(value).decode()]
            for key, value in records.items()
        ],
        "meaning": meaning(restored(records)),
    }


def restored(records: dict[bytes, bytes | None]) -> PartitionEngine:
    engine = PartitionEngine.restore(settings(), records.items())
    assert engine is not None
    return engine


def read(path: Path) -> tuple[dict[bytes, bytes | None], Any]:
    golden = json.loads(path.read_text())
    records = {key.encode(): None if value is None else base64.b64decode(value) for key, value in golden["records"]}
    return records, golden["meaning"]


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("state-v*.json")), ids=lambda path: path.stem)
def test_each_version_that_was_written_is_read(path: Path) -> None:
    records, must = read(path)
    assert json.loads(json.dumps(meaning(restored(records)))) == must


def test_a_state_that_does_not_name_its_last_record_means_the_one_below_its_offset() -> None:
    engine = restored(read(GOLDEN / "state-v1.json")[0])
    assert engine.applied is not None
    assert engine.applied[0] == engine.offset - 1


def test_what_is_written_is_what_the_golden_file_says() -> None:
    """Else the format has changed without a new version."""
    if "REWRITE" in os.environ:
        CURRENT.write_text(json.dumps(written(), indent=1) + "\n")
    assert json.loads(json.dumps(written())) == json.loads(CURRENT.read_text())


@pytest.mark.parametrize("key", [b"m", b"c0"], ids=["marker", "chunk"])
def test_a_newer_version_is_refused_by_name(key: bytes) -> None:
    records, _ = read(CURRENT)
    value = records[key]
    assert value is not None
    records[key] = value.replace(b'"version":1', b'"version":9') if key == b"m" else b"\x09" + value[1:]
    with pytest.raises(InvariantError, match="has version 9, this worker reads 1: run the newer worker"):
        restored(records)


@pytest.mark.parametrize("value", [b"", b"\x01", b"\x01\x40\x00", b"{"], ids=["empty", "head", "cut", "json"])
@pytest.mark.parametrize("key", [b"m", b"c0", b"r"], ids=["marker", "chunk", "cutoff"])
def test_garbage_is_refused_and_says_what_to_do(key: bytes, value: bytes) -> None:
    records, _ = read(CURRENT)
    (found,) = [one for one in records if one.startswith(key)][:1]
    records[found] = value
    with pytest.raises(InvariantError, match=r"Restore the state topic, or delete it|run the newer worker"):
        restored(records)
