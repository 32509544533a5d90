"""What does a benchmark run on? A real broker, topics of its own, real worker processes.

The broker is a fresh one in a directory that is removed afterwards, or the one that LAPSE_KAFKA names.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from lapse.pipeline.broker import find_or_start
from lapse.pipeline.operations.topics import apply_topics
from lapse.pipeline.settings import Settings
from lapse.schemas import RuntimeFault, TopicNames

from benchmarks.report import say

__all__ = ["PARTITIONS", "Lab", "Worker", "laboratory", "reading"]

PARTITIONS = 8
_START_DEADLINE_S = 60.0
_STOP_DEADLINE_S = 60.0


class Worker:
    """A worker process with its metrics."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, log: Path) -> None:
        self._process = process
        self._port = port
        self._log = log

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def number(self, name: str) -> float:
        """Return the sum of a metric over its labels; 0 where it is not there yet."""
        if self._process.returncode is not None:
            raise RuntimeFault(f"the worker ended with {self._process.returncode}: see {self._log}\n{self._tail()}")
        try:
            text = await asyncio.to_thread(self._scrape)
        except OSError:
            return 0.0
        lines = (line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] == name)
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    async def until(self, name: str, at_least: float, deadline_s: float) -> None:
        """Wait until a metric has come to a value."""
        async with asyncio.timeout(deadline_s):
            while await self.number(name) < at_least:  # noqa: ASYNC110  # another process: there is no event to await
                await asyncio.sleep(0.05)

    async def until_at_most(self, name: str, at_most: float, deadline_s: float) -> None:
        """Wait until a metric has fallen to a value."""
        async with asyncio.timeout(deadline_s):
            while await self.number(name) > at_most:  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.05)

    def memory_mb(self, field: str = "VmRSS") -> float:
        """Return the memory that the process has in use, or (VmHWM) the most it ever had, in MB (Linux only)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = next(line for line in status.splitlines() if line.startswith(field + ":"))
        return int(found.split()[1]) * 1024 / 1e6

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return what the worker has logged of one event."""
        lines = (line for line in self._log.read_text().splitlines() if line.startswith("{"))
        return [entry for line in lines if (entry := json.loads(line)).get("event") == event]

    async def kill(self) -> None:
        """End the worker as kill -9 does: nothing more is written."""
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> None:
        """End the worker as an operator does: with a last checkpoint."""
        if self._process.returncode is None:
            self._process.terminate()
            try:
                async with asyncio.timeout(_STOP_DEADLINE_S):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    def _scrape(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
        return text

    def _tail(self) -> str:
        return self._log.read_text()[-2000:]


class Lab:
    """A broker with Lapse's topics."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.settings = settings
        self.topics = TopicNames(settings.prefix)
        self._directory = directory
        self._workers = 0

    @contextlib.asynccontextmanager
    async def worker(
        self, name: str = "bench", *, owns: int | None = None, **settings: object
    ) -> AsyncIterator[Worker]:
        """Run a worker; when this is entered it owns its partitions.

        Args:
            name: the worker's own, by which the group knows it again.
            owns: for how many partitions to wait; all of them unless told.
            settings: of this worker, by their names.
        """
        self._workers += 1
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = self._directory / f"worker-{self._workers}.log"
        environment = {
            **os.environ,
            "LAPSE_KAFKA": self.settings.kafka,
            "LAPSE_PREFIX": self.settings.prefix,
            "LAPSE_PARTITIONS": str(self.settings.partitions),
            "LAPSE_WORKER": name,
            "LAPSE_WORKER_KEY": self.settings.worker_key.decode(),
            **{f"LAPSE_{setting.upper()}": str(value) for setting, value in settings.items()},
        }
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "lapse.pipeline.cli", "run", "--metrics-port", str(port), env=environment,
                stdout=stderr, stderr=stderr,
            )  # fmt: skip
        worker = Worker(process, port, log)
        try:
            wanted = self.settings.partitions if owns is None else owns
            await worker.until("lapse_partitions_owned", wanted, _START_DEADLINE_S)
            yield worker
        finally:
            await worker.stop()


@contextlib.asynccontextmanager
async def laboratory(name: str) -> AsyncIterator[Lab]:
    """Make a lab whose topics begin with `bench-<name>.`, and remove what was made."""
    directory = Path(tempfile.mkdtemp(prefix="lapse-bench-"))
    broker = await asyncio.to_thread(find_or_start, os.environ.get("LAPSE_KAFKA"), directory / "broker", say)
    try:
        settings = Settings(
            kafka=broker.bootstrap,
            prefix=f"bench-{name}-{os.getpid()}.",
            partitions=PARTITIONS,
            worker_key=b"a key for benchmarks, nothing to hide",
        )
        await apply_topics(settings)
        yield Lab(settings, directory)
    finally:
        await asyncio.to_thread(broker.stop, erase=True)
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.asynccontextmanager
async def reading(lab: Lab, topic: str) -> AsyncIterator[AIOKafkaConsumer]:
    """Read a topic of the lab from its present end on."""
    consumer = AIOKafkaConsumer(bootstrap_servers=lab.settings.kafka, group_id=None, fetch_max_wait_ms=50)
    await consumer.start()
    try:
        tps = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        consumer.assign(tps)
        for tp, end in (await consumer.end_offsets(tps)).items():
            consumer.seek(tp, end)
        yield consumer
    finally:
        await consumer.stop()
