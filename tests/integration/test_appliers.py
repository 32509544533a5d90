"""Goal: what has ended is gone from where it lives, whatever crashes, and operators see who does it.

Method: the real program on a real broker, with a real Redis and a real HTTP receiver; endings are written as the
processor writes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from psycopg import AsyncConnection
from redis.asyncio import Redis

from lapse.pipeline.settings import Settings
from lapse.schemas import GuardStatus, TopicNames, parse_dead_letter, parse_enforcement, session_reference

from tests.cli.running import flags_of, lapse, program, program_environment
from tests.consumers.appliers.test_webhook import SECRET, receiving
from tests.consumers.support import Writer, read_all, until, writing
from tests.servers import postgres, redis

PATIENCE_S = 40.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
async def store(server: str) -> AsyncIterator[Any]:
    client: Any = Redis.from_url(server)
    await client.flushall()
    yield client
    await client.aclose()


@contextlib.asynccontextmanager
async def applying(settings: Settings, *arguments: str, **variables: str) -> AsyncIterator[Process]:
    """Run `lapse apply`; its standard error goes to the test's, to be seen where a test fails."""
    process = await asyncio.create_subprocess_exec(
        *program("apply", *arguments, *flags_of(settings)), env=program_environment(**variables), stdout=DEVNULL
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def committed(settings: Settings, name: str) -> dict[int, int | None]:
    """Return what the applier's group has committed, by partition."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka, group_id=f"{settings.prefix}{name}")
    await consumer.start()
    try:
        topic = TopicNames(settings.prefix).expiries
        return {
            number: await consumer.committed(TopicPartition(topic, number)) for number in range(settings.partitions)
        }
    finally:
        await consumer.stop()


async def until_true(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return when other processes have made it so."""
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110  # what is awaited is another process's doing: it sets no event
            await asyncio.sleep(0.05)


async def until_keys(store: Any, wanted: set[str]) -> None:
    """Return when these are all the sessions that the store has."""

    async def holds() -> bool:
        return {key.decode() for key in await store.keys("sess:*")} == wanted

    await until_true(holds)


async def until_committed(settings: Settings, name: str) -> None:
    """Return when the applier's group has committed something in every partition."""

    async def holds() -> bool:
        return None not in (await committed(settings, name)).values()

    await until_true(holds)


async def end(writer: Writer, *session_ids: str) -> None:
    for number, session_id in enumerate(session_ids):
        await writer.end(session_reference(session_id), f"u-{number}")


@pytest.mark.slow
async def test_sessions_of_before_of_just_now_and_written_back_are_deleted(settings: Settings, store: Any) -> None:
    await store.mset({f"sess:{name}": b"data" for name in ("old", "gone-before", "live")})
    async with writing(settings) as writer:
        await end(writer, "gone-before")  # before the applier's first start
        async with applying(
            settings, "redis", "--layout", "connect", "--every", "1s", LAPSE_STORE=f"{_url(store)}"
        ) as process:
            await until_keys(store, {"sess:old", "sess:live"})
            await store.set("sess:young", b"data")
            await end(writer, "young", "old")
            await until_keys(store, {"sess:live"})
            await store.set("sess:young", b"data")  # a request that was under way saves its session
            await until_keys(store, {"sess:live"})
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
        # While it is away a session ends; it goes on where it stopped.
        await end(writer, "live")
        async with applying(settings, "redis", "--layout", "connect", LAPSE_STORE=_url(store)):
            await until_keys(store, set())


def _url(store: Any) -> str:
    where = store.connection_pool.connection_kwargs
    return f"redis://{where['host']}:{where['port']}/0"


@pytest.mark.slow
async def test_a_crash_between_effect_and_commit_loses_nothing(settings: Settings, store: Any) -> None:
    names = [f"s-{number}" for number in range(40)]
    await store.mset({f"sess:{name}": b"data" for name in [*names, "live"]})
    async with writing(settings) as writer:
        await end(writer, *names)
        killed = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.integration._applying", settings.kafka, settings.prefix, _url(store)
        )
        assert await asyncio.wait_for(killed.wait(), PATIENCE_S) == -signal.SIGKILL
        assert set((await committed(settings, "apply-redis")).values()) <= {None, 0}
        async with applying(settings, "redis", "--layout", "connect", LAPSE_STORE=_url(store)):
            await until_keys(store, {"sess:live"})
            await until_committed(settings, "apply-redis")


async def test_a_store_that_is_away_holds_the_endings_and_commits_nothing(settings: Settings, tmp_path: Path) -> None:
    with redis(tmp_path) as url:
        pass  # it was there once: the port is nobody's now
    async with writing(settings) as writer:
        await end(writer, "one")
        async with applying(settings, "redis", "--layout", "connect", LAPSE_STORE=url):
            await until_reported(settings, "apply-redis")
            assert set((await committed(settings, "apply-redis")).values()) <= {None}


async def until_reported(settings: Settings, name: str, checks: int = 0) -> GuardStatus:
    """Return a status that the applier has reported, with so many endings seen."""
    topic = TopicNames(settings.prefix).enforcement
    count = 1
    async with asyncio.timeout(PATIENCE_S):
        while True:
            records = await read_all(settings, topic, count, timeout_s=PATIENCE_S)
            for report in (parse_enforcement(record.value) for record in records):
                if isinstance(report, GuardStatus) and report.service == name and report.checks >= checks:
                    return report
            count = len(records) + 1


@pytest.mark.slow
async def test_operators_see_an_applier_beside_the_guards(settings: Settings, store: Any) -> None:
    await store.set("sess:one", b"data")
    async with (
        writing(settings) as writer,
        applying(settings, "redis", "--layout", "connect", LAPSE_STORE=_url(store)),
    ):
        await until_reported(settings, "apply-redis")
        await end(writer, "one")
        status = await until_reported(settings, "apply-redis", checks=1)
        assert status.propagation_ms is not None
        assert len(status.applied["expiries"]) == settings.partitions
        async with asyncio.timeout(PATIENCE_S):
            while True:
                outcome = await asyncio.to_thread(lapse, "fleet", "--json", settings=settings)
                (row,) = outcome.rows
                if not row["findings"]:
                    break
        assert row["service"] == "apply-redis"
        assert row["refused"] == 1
        assert outcome.code == 0


@pytest.mark.slow
async def test_a_webhook_begins_now_goes_on_where_it_stopped_and_dead_letters_what_is_refused(
    settings: Settings,
) -> None:
    refused = session_reference("poison")

    def answers(body: dict[str, Any]) -> int:
        return 422 if body["data"]["session"] == refused else 200

    options = ("--allow", "127.0.0.0/8", "--attempts", "2")
    async with writing(settings) as writer, receiving(answers) as receiver:
        await end(writer, "history")
        async with applying(settings, "webhook", receiver.url, *options, LAPSE_WEBHOOK_SECRET=SECRET) as process:
            await until_committed(settings, "apply-webhook")
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
        await writer.producer.send_and_wait(writer.topics.expiries, b"not JSON", key=b"bad", partition=1)
        await end(writer, "poison", "one", "two")
        async with applying(settings, "webhook", receiver.url, *options, LAPSE_WEBHOOK_SECRET=SECRET):
            letters = await read_all(settings, TopicNames(settings.prefix).dead_letters, 2, timeout_s=PATIENCE_S)
            await until(lambda: len(set(receiver.ids)) >= 3, PATIENCE_S)
    found = [parse_dead_letter(letter.value) for letter in letters]
    assert {letter.topic for letter in found} == {f"{settings.prefix}expiries"}
    assert sorted("422" in letter.reason for letter in found) == [False, True]
    assert not any(session_reference("history") in body for _, body in receiver.calls)


@pytest.mark.slow
async def test_two_of_one_name_share_the_partitions_and_one_that_dies_is_taken_over(
    settings: Settings, store: Any
) -> None:
    options = ("redis", "--layout", "connect")
    async with (
        writing(settings) as writer,
        applying(settings, *options, LAPSE_STORE=_url(store)) as one,
        applying(settings, *options, LAPSE_STORE=_url(store)),
    ):
        for round_number in range(3):
            names = [f"s-{round_number}-{number}" for number in range(12)]
            await store.mset({f"sess:{name}": b"data" for name in names})
            await end(writer, *names)
            await until_keys(store, set())
            if round_number == 1:
                os.kill(one.pid, signal.SIGKILL)


@pytest.mark.slow
async def test_djangos_table_in_postgresql_loses_what_ended_before_and_just_now(
    settings: Settings, tmp_path: Path
) -> None:
    with postgres(tmp_path) as url:
        async with await AsyncConnection.connect(url, autocommit=True) as database, writing(settings) as writer:
            await database.execute(
                "CREATE TABLE django_session (session_key varchar(40) PRIMARY KEY, session_data text)"
            )
            await database.execute("INSERT INTO django_session VALUES ('old', ''), ('live', '')")
            await end(writer, "old")

            async def left() -> set[str]:
                return {row[0] async for row in await database.execute("SELECT session_key FROM django_session")}

            async with applying(settings, "django", LAPSE_STORE=url):

                async def only_live() -> bool:
                    return await left() == {"live"}

                await until_true(only_live)
                await database.execute("INSERT INTO django_session VALUES ('young', '')")
                await end(writer, "young")
                await until_true(only_live)
                await until_committed(settings, "apply-django")


def test_what_is_missing_or_wrong_is_told_before_anything_runs(settings: Settings) -> None:
    for arguments, said in (
        (("redis",), "--layout"),
        (("redis", "--layout", "php"), "no layout"),
        (("redis", "--layout", "flask"), "LAPSE_STORE"),
        (("django",), "LAPSE_STORE"),
        (("sql",), "LAPSE_STORE"),
        (("sql", "--every", "soon"), "--every"),
        (("webhook", "https://example.com/"), "LAPSE_WEBHOOK_SECRET"),
        (("webhook", "https://example.com/", "--from", "there"), "--from"),
    ):
        outcome = lapse("apply", *arguments, settings=settings)
        assert outcome.code == 2, arguments
        assert said in outcome.err


async def test_a_store_that_can_never_be_right_ends_the_program(settings: Settings, tmp_path: Path) -> None:
    async with writing(settings):
        process = await asyncio.create_subprocess_exec(
            *program("apply", "sql", "--statement", "DELETE FROM x WHERE y = :reference", *flags_of(settings)),
            env=program_environment(LAPSE_STORE=f"sqlite:///{_database(tmp_path)}"),
            stderr=PIPE,
        )
        _, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == 1
    assert b"no such table" in err
    assert b"Traceback" not in err


def _database(directory: Path) -> Path:
    path = directory / "app.db"
    path.touch()
    return path
