"""Goal: with the commands alone an operator gets sessions ended: topics, a policy, a worker, a revocation, the endings.

Method: each command as its own process against a real broker; activity is published as a client in any language would.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from lapse.pipeline.settings import Settings
from lapse.schemas import session_reference

from tests.cli.running import flags_of, lapse, program

IDLE = session_reference("one who goes away")
REVOKED = session_reference("one who is sent away")


@pytest.fixture
def worker(settings: Settings, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A worker on topics of its own, in a process of its own."""
    counted = ["--partitions", str(settings.partitions)]
    assert lapse("topics", "apply", *counted, settings=settings).code == 0
    assert lapse("policy", "set", "default", "--idle", "2s", "--absolute", "1h", settings=settings).code == 0
    with (tmp_path / "worker.log").open("w") as log:
        process = subprocess.Popen(
            program("run", *counted, "--directory", str(tmp_path / ".lapse"), *flags_of(settings)),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def start(settings: Settings, *sessions: str) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka, "partitioner": "murmur2_random"})
    for session in sessions:
        record = {"type": "session.started", "session": session, "subject": "u-42", "service": "web", "age_ms": 0}
        producer.produce(f"{settings.prefix}activity", json.dumps(record).encode(), key=b"u-42")
    assert producer.flush(10) == 0


def endings(settings: Settings, count: int) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        program("watch", "--since", "1h", "--count", str(count), "--json", *flags_of(settings)),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return {row["session"]: row for row in map(json.loads, done.stdout.splitlines())}


def test_sessions_end_by_the_commands_alone(worker: subprocess.Popen[str], settings: Settings) -> None:
    start(settings, IDLE, REVOKED)
    order = ["--subject", "u-42", "--reason", "admin", "--json"]
    [revocation] = lapse("revoke", "session", REVOKED, *order, settings=settings).rows
    found = endings(settings, 2)
    assert (found[IDLE]["cause"], found[IDLE]["policy"]) == ("idle", "default")
    assert found[IDLE]["due_at"] == found[IDLE]["last_seen_at"] + 2_000
    assert found[IDLE]["appended_at"] >= found[IDLE]["due_at"]
    assert (found[REVOKED]["cause"], found[REVOKED]["revocation"]) == ("revoked", revocation["id"])
    worker.send_signal(signal.SIGTERM)
    out, _ = worker.communicate(timeout=30)
    assert (worker.returncode, out) == (0, "")
