"""How long from producing a revocation until a service in another process refuses the session over HTTP?

The service is a real uvicorn with the guard's middleware (benchmarks/service.py). Of one session after the other: a
request passes; the revocation is produced (acks=all); a client on one connection that is kept alive asks again as soon
as it was answered, until the answer is 401. From before the call that produces until that answer is here: the figure
holds the broker's append, the guard's fetch, and the request that was on its way when the guard learned of it and the
one after. `guard_*` is without HTTP: until a check within the service refuses. The clock is the machine's monotonic
one, which processes share.

The baseline is taken before, with nothing else running: until a bare consumer in another process has the record (p99
for p99), which no guard on Kafka can beat. `http_*` is one request of the same service that the guard has no part in.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from lapse.schemas import Revocation, encode, parse_revocation, partition_of, session_reference, subject_key

from benchmarks.lab import PARTITIONS, Lab, laboratory
from benchmarks.report import percentile, report, say

__all__ = ["run"]

REVOCATIONS = 1_000
_REQUESTS = 1_000
_WARM = 50  # the first of each pay for first code paths
_SPACING_S = 0.01
_DEADLINE_S = 240.0


async def run() -> None:
    """`propagation`."""
    async with laboratory("propagation") as lab, lab.worker():
        say(f"propagation: {REVOCATIONS} revocations to a bare consumer, and as many to a service")
        async with asyncio.timeout(_DEADLINE_S), _producing(lab) as producer:
            bare = await _received(lab, producer)
            over_http, within, requests = await _refused(lab, producer)
    report(
        "propagation",
        percentile(over_http, 99),
        "ms",
        percentile(bare, 99),
        p50=percentile(over_http, 50),
        p99=percentile(over_http, 99),
        max=max(over_http),
        guard_p50=percentile(within, 50),
        guard_p99=percentile(within, 99),
        http_p50=percentile(requests, 50),
        http_p99=percentile(requests, 99),
        baseline_p50=percentile(bare, 50),
        revocations=len(over_http),
        baseline_is="p99 from produce to receipt by a bare aiokafka consumer in another process",
    )


async def _received(lab: Lab, producer: AIOKafkaProducer) -> list[float]:
    """Return how long each revocation was on its way to a bare consumer, ms."""
    arguments = ["-m", "benchmarks.propagation", lab.settings.kafka, lab.settings.prefix]
    async with _child(arguments, {}, stdout=asyncio.subprocess.PIPE) as child:
        assert child.stdout is not None, "it was asked for"
        assert await child.stdout.readline() == b"ready\n", "the consumer's process did not start"
        produced = {}
        for number in range(_WARM + REVOCATIONS):
            order = _order(f"bare-{number}")
            produced[order.id] = await _produce(lab, producer, order)
            await asyncio.sleep(_SPACING_S)
        received = json.loads(await child.stdout.readline())
    return [1000 * (received[order] - at) for order, at in produced.items()][_WARM:]


async def _refused(lab: Lab, producer: AIOKafkaProducer) -> tuple[list[float], list[float], list[float]]:
    """Return how long until each session was refused over HTTP and within the service, and single requests, ms."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["-m", "uvicorn", "benchmarks.service:app", "--port", str(port), "--log-level", "warning"]
    produced: dict[str, float] = {}
    refused: dict[str, float] = {}
    environment = {"LAPSE_KAFKA": lab.settings.kafka, "LAPSE_PREFIX": lab.settings.prefix}
    async with _child(arguments, environment) as child, _connected(child, port) as client:
        for number in range(_WARM + REVOCATIONS):
            raw = f"served-{number}"
            order = _order(raw)
            assert await client.ask("/", raw, order.subject) == 200, "a live session is refused"
            session = session_reference(raw)
            produced[session] = await _produce(lab, producer, order)
            while (status := await client.ask("/", raw, order.subject)) == 200:
                pass
            refused[session] = time.monotonic()
            assert status == 401, f"the service answers {status}"
            await asyncio.sleep(_SPACING_S)
        requests = []
        for _ in range(_WARM + _REQUESTS):
            began = time.monotonic()
            assert await client.ask("/open") == 200, "nobody's request is refused"
            requests.append(1000 * (time.monotonic() - began))
        assert await client.ask("/seen") == 200, "the service does not tell"
        within: dict[str, float] = json.loads(client.body)
    return (
        [1000 * (refused[session] - at) for session, at in produced.items()][_WARM:],
        [1000 * (within[session] - at) for session, at in produced.items()][_WARM:],
        requests[_WARM:],
    )


def _order(raw: str) -> Revocation:
    return Revocation(id=f"r-{raw}", session=session_reference(raw), subject=f"u-{raw}", reason="bench")


async def _produce(lab: Lab, producer: AIOKafkaProducer, order: Revocation) -> float:
    """Produce a revocation, and return when that began; whoever is to know it does not wait for the acknowledgement."""
    began = time.monotonic()
    key, partition = subject_key(order.subject or "", None), partition_of(order.subject or "", None, PARTITIONS)
    await producer.send(lab.topics.revocations, encode(order), key, partition=partition)
    return began


@contextlib.asynccontextmanager
async def _producing(lab: Lab) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=lab.settings.kafka, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


@contextlib.asynccontextmanager
async def _child(
    arguments: Sequence[str], environment: dict[str, str], *, stdout: int | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run Python in a process of its own, and end it."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=stdout, limit=2**20, env={**os.environ, **environment}
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.terminate()
            await child.wait()


class _Client:
    """One connection that is kept alive. A client for everybody would take longer than the service does."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.body = b""

    async def ask(self, path: str, session_id: str | None = None, subject: str | None = None) -> int:
        """Return the status of the answer, once all of it is here."""
        whose = "" if session_id is None else f"x-session: {session_id}\r\nx-subject: {subject}\r\n"
        self._writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n{whose}\r\n".encode())
        status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        (length,) = (line for line in lines if line.lower().startswith(b"content-length:"))
        self.body = await self._reader.readexactly(int(length.partition(b":")[2]))
        return int(status.split()[1])


@contextlib.asynccontextmanager
async def _connected(child: asyncio.subprocess.Process, port: int) -> AsyncIterator[_Client]:
    """Connect as soon as the service listens, which it does once its guard is fresh."""
    while True:
        assert child.returncode is None, f"the service ended with {child.returncode}"
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
            break
        except OSError:
            await asyncio.sleep(0.05)
    try:
        yield _Client(reader, writer)
    finally:
        writer.close()


async def _observe(bootstrap: str, prefix: str) -> None:
    """The bare consumer's process: note when each revocation has been received."""
    received: dict[str, float] = {}
    topic = f"{prefix}revocations"
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=None, fetch_max_wait_ms=100)
    await consumer.start()
    try:
        tps = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        consumer.assign(tps)
        for tp, end in (await consumer.end_offsets(tps)).items():
            consumer.seek(tp, end)
        print("ready", flush=True)
        while len(received) < _WARM + REVOCATIONS:
            for batch in (await consumer.getmany(timeout_ms=100)).values():
                now = time.monotonic()
                for record in batch:
                    received[parse_revocation(record.value).id] = now
    finally:
        await consumer.stop()
    print(json.dumps(received), flush=True)


if __name__ == "__main__":
    asyncio.run(_observe(*sys.argv[1:3]))
