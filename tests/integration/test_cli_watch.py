"""Goal: whoever watches sees each ending once, as it is appended, and nothing else.

Method: the real program in a process of its own against a real broker; endings are written as the processor writes
them.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from lapse.pipeline.operations.topics import apply_topics
from lapse.pipeline.settings import Settings
from lapse.schemas import Cause, Evidence, SessionEnded, Watermark, encode, ending_id, partition_of

from tests.cli.running import flags_of, lapse, program


@pytest.fixture
async def producer(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    await apply_topics(settings)
    async with AIOKafkaProducer(bootstrap_servers=settings.kafka, enable_idempotence=True) as started:
        yield started


def ended(session: str, cause: Cause = Cause.IDLE, subject: str = "u-42", tenant: str | None = "acme") -> SessionEnded:
    return SessionEnded(
        id=ending_id(session),
        session=session,
        subject=subject,
        tenant=tenant,
        cause=cause,
        started_at=1_000,
        last_seen_at=2_000,
        due_at=3_000,
        decided_at=3_250,
        idle_ms=1_000,
        absolute_ms=60_000,
        policy="default",
        policy_version=None,
        revocation=None,
        held=False,
        evidence=Evidence(partition=0, offset=7),
        deny_until=61_000,
    )


async def publish(producer: AIOKafkaProducer, settings: Settings, *endings: SessionEnded) -> None:
    for ending in endings:
        partition = partition_of(ending.subject, ending.tenant, settings.partitions)
        await producer.send_and_wait(
            f"{settings.prefix}expiries", encode(ending), key=ending.session.encode(), partition=partition
        )


@contextmanager
def watching(settings: Settings, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run `lapse watch`; on entry it has said that it watches."""
    process = subprocess.Popen(
        program("watch", *arguments, *flags_of(settings)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("watching ")
        yield process
    finally:
        process.kill()
        process.communicate()


def lines(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline() for _ in range(count)]


async def test_endings_come_as_they_are_appended_whole(producer: AIOKafkaProducer, settings: Settings) -> None:
    await publish(producer, settings, ended("before"))
    with watching(settings, "--json") as process:
        await publish(producer, settings, ended("one"))
        [line] = lines(process, 1)
        await publish(producer, settings, ended("two", Cause.REVOKED))
        [other] = lines(process, 1)
    row: dict[str, Any] = json.loads(line)
    place = {name: row.pop(name) for name in ("partition", "offset", "appended_at")}
    assert row == ended("one").model_dump(mode="json")
    assert place["partition"] == partition_of("u-42", "acme", settings.partitions)
    assert place["appended_at"] > 0
    assert json.loads(other)["session"] == "two"


async def test_a_repeated_ending_is_shown_once_and_what_is_no_ending_never(
    producer: AIOKafkaProducer, settings: Settings
) -> None:
    topic = f"{settings.prefix}expiries"
    with watching(settings, "--json", "--count", "2") as process:
        await publish(producer, settings, ended("one"), ended("one"))
        await producer.send_and_wait(topic, encode(Watermark(as_of=1)), key=b"watermark", partition=0)
        await producer.send_and_wait(topic, None, key=b"one", partition=0)
        await producer.send_and_wait(topic, b"not json", key=b"x", partition=0)
        await publish(producer, settings, ended("one"), ended("two"))
        out, err = process.communicate(timeout=30)
    assert sorted(json.loads(line)["session"] for line in out.splitlines()) == ["one", "two"]
    assert process.returncode == 0
    assert err == "" or "expiries/0, offset" in err  # the bad record, told unless both endings came before it


async def test_since_begins_in_the_past(producer: AIOKafkaProducer, settings: Settings) -> None:
    await publish(producer, settings, ended("one"), ended("two"))
    outcome = run_to_end(settings, "--since", "1h", "--json", "--count", "2")
    assert sorted(row["session"] for row in outcome) == ["one", "two"]


def run_to_end(settings: Settings, *arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        program("watch", *arguments, *flags_of(settings)), capture_output=True, text=True, timeout=30, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("chosen", "shown"),
    [
        (["--cause", "revoked"], "b"),
        (["--cause", "absolute", "--cause", "closed"], "c"),
        (["--tenant", "other"], "d"),
        (["--subject", "u-7"], "e"),
    ],
)
async def test_only_what_is_asked_for_is_shown(
    producer: AIOKafkaProducer, settings: Settings, chosen: list[str], shown: str
) -> None:
    await publish(
        producer,
        settings,
        ended("a"),
        ended("b", Cause.REVOKED),
        ended("c", Cause.CLOSED),
        ended("d", tenant="other"),
        ended("e", subject="u-7"),
    )
    [row] = run_to_end(settings, "--since", "1h", "--json", "--count", "1", *chosen)
    assert row["session"] == shown


async def test_ctrl_c_is_the_way_to_end_it(producer: AIOKafkaProducer, settings: Settings) -> None:
    with watching(settings) as process:
        await publish(producer, settings, ended("one"))
        [line] = lines(process, 1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert "idle" in line
    assert "acme/u-42" in line
    assert (process.returncode, out, err) == (0, "", "")


async def test_a_reader_that_goes_away_ends_it(producer: AIOKafkaProducer, settings: Settings) -> None:
    with watching(settings) as process:
        assert process.stdout is not None
        process.stdout.close()
        for number in range(200):
            if process.poll() is not None:
                break
            await publish(producer, settings, ended(f"s{number}"))
        assert process.wait(timeout=30) == 1
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
        process.stdout = None


async def test_a_hostile_name_cannot_steer_the_terminal(producer: AIOKafkaProducer, settings: Settings) -> None:
    with watching(settings) as process:
        await publish(producer, settings, ended("\x1b[2J", subject="\x1b]0;x\x07"))
        [line] = lines(process, 1)
    assert "\x1b" not in line
    assert "\x07" not in line


def test_without_topics_it_says_how_to_make_them(settings: Settings) -> None:
    outcome = lapse("watch", settings=settings)
    assert outcome.code == 1
    assert "lapse topics apply" in outcome.err
