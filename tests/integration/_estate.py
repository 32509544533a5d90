"""Topics of their own on the real broker, and a worker on them as its users start one: `lapse run`, in a process.

And what must be true of every log of endings, whatever was done: `audit`.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lapse.pipeline.settings import Settings
from lapse.schemas import partition_of

from tests.brokers import Broker, remove_topics
from tests.cli.running import flags_of, lapse, program, program_environment
from tests.consumers.support import free_port
from tests.integration._raw import PATIENCE_S, RawReader, RawWriter, Stored
from tests.processor.support import subjects_of

__all__ = ["GRACE_MS", "PARTITIONS", "Estate", "estate_on", "session_names", "until"]

PARTITIONS = 4
GRACE_MS = 250
# Log time is that of a tick's sending, at least, and known to so much by its owner's first brackets.
CERTAIN_WITHIN_MS = 250

# Sessions of this policy end by themselves while a test waits; those of the other only by what a test does.
BRIEF = {"type": "policy", "name": "brief", "idle_ms": 1_000, "absolute_ms": None}
OFFICE = {"type": "policy", "name": "office", "idle_ms": 3_600_000, "absolute_ms": 28_800_000}


def session_names(count: int) -> list[str]:
    """Return so many session references that nobody has had."""
    return [secrets.token_urlsafe(16) for _ in range(count)]


class Estate:
    """One prefix with its topics, a raw writer and readers, and a worker."""

    def __init__(self, settings: Settings, directory: Path, variables: dict[str, str]) -> None:
        self.settings = settings
        self.prefix = settings.prefix
        self.bootstrap = settings.kafka
        self.metrics_port = free_port()
        self._log = directory / "worker.log"
        self._directory = directory
        self._variables = variables
        self._process: subprocess.Popen[bytes] | None = None
        self._at_rest = True
        self._readers: dict[str, RawReader] = {}
        self.writer = RawWriter(self.bootstrap, self.prefix)

    # The worker

    def start(self) -> None:
        """Start the worker, and return at once."""
        self._at_rest = False
        command = program(
            "run", "--partitions", str(PARTITIONS), "--directory", str(self._directory / ".lapse"),
            "--metrics-port", str(self.metrics_port), *flags_of(self.settings),
        )  # fmt: skip
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=program_environment(**self._variables), stdout=log, stderr=log
            )

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ask it to stop, and return its exit code."""
        return self._end(signal.SIGTERM)

    def at_work(self, policies: int = 0) -> None:
        """Wait until this start of it has ticked in every partition, and so many policies have been copied there."""
        before = len(self.activity.to_end())

        def everywhere(records: list[Stored]) -> bool:
            kinds = [(record.partition, record.json["type"]) for record in records[before:] if _is_control(record)]
            return all(
                (number, "clock.tick") in kinds and kinds.count((number, "policy.adopted")) >= policies
                for number in range(PARTITIONS)
            )

        self.activity.until(everywhere, f"a tick and {policies} policies in every partition\n{self.log}")

    def _alive(self) -> None:
        assert self._at_rest or self.running, f"the worker has ended by itself:\n{self._tail()}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        return self._log.read_text()

    def metric(self, name: str, **labels: str) -> float:
        """Return the worker's metric; 0 where there is none of that name yet."""
        address = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(address, timeout=PATIENCE_S) as answer:
            text = answer.read().decode()
        wanted = ",".join(f'{label}="{value}"' for label, value in labels.items())
        pattern = re.escape(f"{name}{{{wanted}}}" if wanted else name) + r" (\S+)$"
        found = re.search(rf"^{pattern}", text, re.MULTILINE)
        return float(found.group(1)) if found else 0.0

    def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._at_rest = True
        self._process.send_signal(number)
        return self._process.wait(PATIENCE_S)

    # The topics

    def read(self, topic: str) -> RawReader:
        """Return this estate's reader of a topic."""
        if topic not in self._readers:
            self._readers[topic] = RawReader(self.bootstrap, self.prefix, topic, self._alive)
        return self._readers[topic]

    @property
    def activity(self) -> RawReader:
        return self.read("activity")

    def written_by(self, **config: Any) -> RawWriter:
        """Return another writer, of another configuration."""
        return RawWriter(self.bootstrap, self.prefix, **config)

    def lapse(self, *arguments: str) -> list[dict[str, Any]]:
        """Run a command that must succeed, with --json; return its rows."""
        outcome = lapse(*arguments, "--json", settings=self.settings)
        assert outcome.code == 0, outcome.err
        return outcome.rows

    def endings(self, *sessions: str) -> list[dict[str, Any]]:
        """Wait for the endings of these sessions, and return each session's one ending."""
        reader = self.read("expiries")
        reader.until(lambda _: set(sessions) <= self.ended().keys(), f"endings of {sessions}\n{self._tail()}")
        found = self.ended()
        return [found[session].json for session in sessions]

    def ended(self) -> dict[str, Stored]:
        """Return the first record of each ending that has been read so far."""
        first: dict[str, Stored] = {}
        for record in self.read("expiries").records:
            if record.key != b"watermark":
                first.setdefault(record.json["session"], record)
        return first

    def fence(self, *partitions: int) -> None:
        """Return when whatever was due when this was called has ended in these partitions (without any: in all).

        A session that starts now ends by itself; in a partition endings stand in the order in which they were settled.
        """
        numbers = partitions or range(PARTITIONS)
        sessions = session_names(len(numbers))
        for session, number in zip(sessions, numbers, strict=True):
            (subject,) = subjects_of(number, PARTITIONS, 1)
            self.writer.activity(
                {"type": "session.started", "session": session, "subject": subject, "service": "fence", "age_ms": 0,
                 "policy": "brief"}
            )  # fmt: skip
        self.endings(*sessions)

    def copies_of(self, *origins: Stored) -> list[Stored]:
        """Wait until these misplaced records stand in their right partitions; return the first copy of each."""
        wanted = [(origin.partition, origin.offset) for origin in origins]

        def copies(records: list[Stored]) -> dict[tuple[int, int], Stored]:
            found: dict[tuple[int, int], Stored] = {}
            for record in records:
                if record.value is not None and b'"forwarded"' in record.value:
                    place = record.json["forwarded"]
                    found.setdefault((place[0], place[1]), record)
            return found

        records = self.activity.until(lambda seen: set(wanted) <= copies(seen).keys(), f"copies of {wanted}")
        found = copies(records)
        return [found[place] for place in wanted]

    def _tail(self) -> str:
        return self.log[-3_000:]

    def close(self) -> None:
        """End everything."""
        if self.running:
            self.kill()
        for reader in self._readers.values():
            reader.close()

    def audit(self) -> None:
        """Hold everything in expiries to what must be true of every ending; see `_audit`."""
        _audit(self.read("activity").to_end(), self.read("expiries").to_end())


def _is_control(record: Stored) -> bool:
    return (
        record.key is None
        and record.value is not None
        and record.value.startswith(b'{"type":"')
        and (b'"clock.tick"' in record.value or b'"policy.adopted"' in record.value)
    )


@contextlib.contextmanager
def estate_on(broker: Broker, directory: Path, *policies: dict[str, Any], **variables: str) -> Iterator[Estate]:
    """Give topics with the policies brief and office and these, and a worker at work; it is ended for certain."""
    prefix = f"t{secrets.token_hex(4)}."
    key = secrets.token_urlsafe(32)
    settings = Settings(
        kafka=broker.bootstrap, prefix=prefix, partitions=PARTITIONS, worker_key=key, directory=directory
    )
    outcome = lapse("topics", "apply", "--partitions", str(PARTITIONS), settings=settings)
    assert outcome.code == 0, outcome.err
    made = Estate(settings, directory, {"LAPSE_WORKER_KEY": key, "LAPSE_WORKER": "contract", **variables})
    try:
        for policy in (BRIEF, OFFICE, *policies):
            made.writer.policy(policy)
        made.start()
        made.at_work(policies=2 + len(policies))
        yield made
    finally:
        made.close()
        remove_topics(broker, prefix)


def _audit(activity: list[Stored], expiries: list[Stored]) -> None:
    """Refuse a log of endings that breaks any of these, session by session and partition by partition.

    - a session ends once: a repeated ending is the same bytes, and so is its id;
    - it stands in its subject's partition, keyed by the session, and never before it is due;
    - what settled it is what it says: the record at evidence.offset, whose stamp is decided_at;
    - no watermark that covers it stands before it;
    - an idle ending that no outage held is settled by the first of its owner's ticks that could.
    """
    stamps = _stamps(activity)
    ticks = _settled_ticks(activity)
    firsts: dict[str, Stored] = {}
    ids: dict[str, str] = {}
    marks: dict[int, int] = {}
    for record in expiries:
        value = record.json
        if value["type"] == "watermark":
            assert record.key == b"watermark"
            marks[record.partition] = max(marks.get(record.partition, 0), value["as_of"])
            continue
        session = value["session"]
        if session in firsts:
            assert record.value == firsts[session].value, "an ending came out again with other fields"
            continue
        firsts[session] = record
        assert ids.setdefault(value["id"], session) == session, "two sessions share an ending's id"
        assert record.key == session.encode()
        assert record.partition == value["evidence"]["partition"]
        assert record.partition == partition_of(value["subject"], value["tenant"], PARTITIONS)
        assert value["due_at"] <= value["decided_at"] <= record.stamp, f"ended early: {value}"
        assert marks.get(record.partition, 0) <= value["decided_at"], f"a watermark ran ahead of {value}"
        of_partition = stamps[record.partition]
        offset = value["evidence"]["offset"]
        assert of_partition[offset] == value["decided_at"]
        if value["cause"] == "idle" and not value["held"]:
            assert value["due_at"] == value["last_seen_at"] + value["idle_ms"]
            before = max((tick for tick in ticks.get(record.partition, ()) if tick < offset), default=None)
            assert (
                before is None
                or of_partition[before] < value["due_at"] + GRACE_MS + CERTAIN_WITHIN_MS
                or before < offset - 1  # what came in between may have made the session due
            ), f"settled late, the tick at {before} could have: {value}"


def _settled_ticks(activity: list[Stored]) -> dict[int, list[int]]:
    """Return, by partition, the offsets of ticks that settle what is due, but for an owner's first two.

    By those an owner learns what time it is (docs/adr/0006).
    """
    found: dict[int, list[int]] = {}
    of_epoch: dict[tuple[int, int], int] = {}
    for record in activity:
        if record.value is None or not record.value.startswith(b'{"type":"clock.tick"'):
            continue
        epoch = (record.partition, record.json["epoch"])
        of_epoch[epoch] = of_epoch.get(epoch, 0) + 1
        if of_epoch[epoch] > 2:
            found.setdefault(record.partition, []).append(record.offset)
    return found


def _stamps(activity: list[Stored]) -> dict[int, dict[int, int]]:
    """Return, by partition and offset, the stamps: append times that never go back."""
    stamps: dict[int, dict[int, int]] = {}
    latest: dict[int, int] = {}
    for record in activity:
        latest[record.partition] = max(latest.get(record.partition, 0), record.stamp)
        stamps.setdefault(record.partition, {})[record.offset] = latest[record.partition]
    return stamps


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until another process has done something that no topic shows."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in {PATIENCE_S} s: {what}"
        time.sleep(0.02)
