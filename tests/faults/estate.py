"""Workers, a load and a verifier on one prefix's topics: each a real process, ended for certain."""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import orjson
from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from lapse.pipeline.settings import Settings

from tests.cli.running import flags_of, lapse, program, program_environment
from tests.faults.load import SHORT, STEADY
from tests.faults.verifier import Report
from tests.integration._raw import RawReader, RawWriter, Stored

__all__ = ["CHECKPOINT_MS", "PARTITIONS", "Estate", "Worker", "estate_on", "until"]

PARTITIONS: Final = 4
# Often, so that a run of seconds meets every step of many checkpoints.
CHECKPOINT_MS: Final = 500
PATIENCE_S: Final = 90.0


def until(condition: Callable[[], bool], what: str, within_s: float = PATIENCE_S) -> float:
    """Wait for what another process does; return after how many seconds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within_s, f"not within {within_s} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - began


class Worker:
    """One `lapse run`, niced as little as anybody's."""

    def __init__(self, settings: Settings, name: str, directory: Path, variables: dict[str, str]) -> None:
        self.name = name
        self.settings = settings
        self._path = directory / f"worker-{name}.log"
        self._variables = variables
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **more: str) -> None:
        """Start it, with these variables besides."""
        assert not self.runs
        command = program("run", "--partitions", str(self.settings.partitions), *flags_of(self.settings))
        variables = self._variables | {"LAPSE_WORKER": self.name} | more
        with self._path.open("ab") as log:
            self._process = subprocess.Popen(command, env=program_environment(**variables), stdout=log, stderr=log)

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def memory_kib(self) -> int:
        """How much of it is resident."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    @property
    def log(self) -> str:
        return self._path.read_text() if self._path.exists() else ""

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """SIGTERM; return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, within_s: float = PATIENCE_S) -> int:
        """Return the exit code once it has ended."""
        assert self._process is not None
        return self._process.wait(within_s)

    def end(self) -> None:
        if self.runs:
            self.signal(signal.SIGCONT)
            self.kill()


class _Reader(RawReader):
    """A reader to whom a broker that is away is no error."""

    def _end_of(self, tp: TopicPartition) -> int:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return int(self._consumer.get_watermark_offsets(tp, 5)[1])
            except KafkaException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)


class Estate:
    """One prefix's topics with all that runs on them."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.settings = settings
        self.directory = directory
        self.writer = RawWriter(settings.kafka, settings.prefix)
        self.activity = _Reader(settings.kafka, settings.prefix, "activity")
        self.expiries = _Reader(settings.kafka, settings.prefix, "expiries")
        self._variables = {
            "LAPSE_WORKER_KEY": settings.worker_key.decode(),
            "LAPSE_CHECKPOINT_INTERVAL_MS": str(CHECKPOINT_MS),
        }
        self._workers: dict[str, Worker] = {}
        self._load: subprocess.Popen[bytes] | None = None
        self._truth = directory / "truth.jsonl"

    def worker(self, name: str) -> Worker:
        """Return the worker of this name, not started yet when it is new."""
        if name not in self._workers:
            self._workers[name] = Worker(self.settings, name, self.directory, self._variables)
        return self._workers[name]

    @contextlib.contextmanager
    def supervised(self) -> Iterator[list[str]]:
        """Start every worker again that ends by itself; the list given gets the last words of each."""
        ended: list[str] = []
        enough = threading.Event()

        def supervise() -> None:
            while not enough.wait(0.2):
                for worker in self._workers.values():
                    if not worker.runs:
                        ended.append(worker.log[-1000:])
                        worker.start()

        thread = threading.Thread(target=supervise, name="supervisor")
        thread.start()
        try:
            yield ended
        finally:
            enough.set()
            thread.join()

    def owners(self) -> dict[int, str]:
        """Return who has written each partition's last tick."""
        last = {}
        for record in self.activity.to_end():
            if record.value is not None and record.value.startswith(b'{"type":"clock.tick"'):
                last[record.partition] = orjson.loads(record.value)["owner"]
        return last

    def owned_by(self, *names: str, within_s: float = PATIENCE_S) -> float:
        """Wait until all partitions' next ticks are of exactly these workers; return after how many seconds."""
        before = len(self.activity.to_end())

        def condition() -> bool:
            last: dict[int, str] = {}
            for record in self.activity.to_end()[before:]:
                if record.value is not None and record.value.startswith(b'{"type":"clock.tick"'):
                    last[record.partition] = orjson.loads(record.value)["owner"]
            return len(last) == self.settings.partitions and set(last.values()) == set(names)

        return until(condition, f"owned by {names}: {[(n, w.log[-1500:]) for n, w in self._workers.items()]}", within_s)

    def resumed_after(self, since: int, partitions: set[int], by: str) -> dict[int, int]:
        """Wait until this worker has them and what it applies comes out; return how many ms after `since` that was.

        Counted is the first record of lapse.expiries after its first tick: what comes earlier had been on its way.
        """
        found: dict[int, int] = {}

        def condition() -> bool:
            ticked: dict[int, int] = {}
            for record in self.ticks():
                if record.stamp > since and record.json["owner"] == by:
                    ticked.setdefault(record.partition, record.stamp)
            for number, stamps in self.expiry_stamps().items():
                after = [stamp for stamp in stamps if number in ticked and stamp >= ticked[number]]
                if after:
                    found.setdefault(number, after[0] - since)
            return partitions <= found.keys()

        until(condition, f"expiries in {partitions}, found {found}")
        return {number: found[number] for number in partitions}

    def expiry_stamps(self) -> dict[int, list[int]]:
        """Return, by partition, the append times of lapse.expiries, as they stand there."""
        stamps: dict[int, list[int]] = {number: [] for number in range(self.settings.partitions)}
        for record in sorted(self.expiries.to_end(), key=lambda one: (one.partition, one.offset)):
            stamps[record.partition].append(record.stamp)
        return stamps

    # The load

    def load(self, *, seed: int, logins: float = 6.0, hot: bool = False) -> None:
        """Start it. Every partition soon has sessions."""
        command = [
            sys.executable, "-m", "tests.faults.load", "--kafka", self.settings.kafka, "--prefix", self.settings.prefix,
            "--partitions", str(self.settings.partitions), "--truth", str(self._truth), "--seed", str(seed),
            "--logins", str(logins), *(["--hot"] if hot else []),
        ]  # fmt: skip
        with (self.directory / "load.log").open("wb") as log:
            self._load = subprocess.Popen(command, stdout=log, stderr=log)

    def end_load(self) -> None:
        """Let everybody leave; return when all of it stands in the log."""
        assert self._load is not None
        self._load.terminate()
        code = self._load.wait(180)
        assert code == 0, (self.directory / "load.log").read_text()[-3000:]

    def verify(self, away_s: float = 0.0, patience_s: float = 60.0) -> Report:
        """Have the verifier read the topics, after a fault that lasted so long; fail where it finds anything."""
        command = [
            sys.executable, "-m", "tests.faults.verifier", "--kafka", self.settings.kafka, "--prefix",
            self.settings.prefix, "--partitions", str(self.settings.partitions), "--patience", str(patience_s),
            "--away", str(away_s), f"--key={self.settings.worker_key.decode()}",  # a key may begin with a dash
        ]  # fmt: skip
        if self._truth.exists():
            command += ["--truth", str(self._truth)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience_s + 240, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        report: Report = json.loads(done.stdout)
        print(f"\nverified: {json.dumps(report)}")
        assert not report["problems"], f"{report}\n{[(n, w.log[-3000:]) for n, w in self._workers.items()]}"
        assert report["sessions"] > 0
        return report

    def ticks(self) -> list[Stored]:
        return [one for one in self.activity.to_end() if one.value and one.value.startswith(b'{"type":"clock.tick"')]

    def close(self) -> None:
        for worker in self._workers.values():
            worker.end()
        if self._load is not None and self._load.poll() is None:
            self._load.kill()
            self._load.wait()
        self.activity.close()
        self.expiries.close()


@contextlib.contextmanager
def estate_on(bootstrap: str, directory: Path, **changes: Any) -> Iterator[Estate]:
    """Give topics of their own with the two policies of the load, and no worker yet."""
    settings = Settings(
        kafka=bootstrap,
        prefix=f"f{secrets.token_hex(4)}.",
        worker_key=secrets.token_urlsafe(32),
        directory=directory,
        **{"partitions": PARTITIONS, **changes},
    )
    outcome = lapse("topics", "apply", "--partitions", str(settings.partitions), settings=settings)
    assert outcome.code == 0, outcome.err
    made = Estate(settings, directory)
    try:
        for policy in (SHORT, STEADY):
            made.writer.policy({"type": "policy", **policy.model_dump(include={"name", "idle_ms", "absolute_ms"})})
        yield made
    finally:
        made.close()
        _remove(settings)


def _remove(settings: Settings) -> None:
    admin = AdminClient({"bootstrap.servers": settings.kafka, "log_level": 0})
    made = [topic for topic in admin.list_topics(timeout=30).topics if topic.startswith(settings.prefix)]
    for done in admin.delete_topics(made, operation_timeout=30).values():
        with contextlib.suppress(Exception):  # a broker may be away: the cluster goes with the session
            done.result(timeout=30)
