"""What does a benchmark run on? A real broker, topics of its own, real worker processes.

The broker is a fresh one in a directory that is removed afterwards, or the one that LAPSE_KAFKA names.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sys
import tempfile
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

from lapse.pipeline.broker import find_or_start
from lapse.pipeline.operations.topics import apply_topics
from lapse.pipeline.settings import Settings
from lapse.schemas import RuntimeFault, TopicNames

from benchmarks.report import say

__all__ = ["PARTITIONS", "Lab", "Worker", "laboratory"]

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
    async def worker(self) -> AsyncIterator[Worker]:
        """Run a worker; it owns all partitions when this is entered."""
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
            "LAPSE_WORKER": "bench",
            "LAPSE_WORKER_KEY": self.settings.worker_key.decode(),
        }
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "lapse.pipeline.cli", "run", "--metrics-port", str(port), env=environment,
                stdout=stderr, stderr=stderr,
            )  # fmt: skip
        worker = Worker(process, port, log)
        try:
            await worker.until("lapse_partitions_owned", self.settings.partitions, _START_DEADLINE_S)
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
