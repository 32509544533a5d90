"""Goal: operators see which service enforces and which does not, and who has applied a revocation.

Method: real guards in processes of their own on a real broker, one of which is stopped; a service that only publishes;
the real program.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from lapse.pipeline.settings import Settings
from lapse.schemas import PackedTouches, Revocation, SessionTouched, encode, session_reference
from lapse.schemas.examples import EXAMPLES

from tests.cli.running import flags_of, lapse, program
from tests.consumers.support import Writer, writing


@contextlib.contextmanager
def guarding(settings: Settings, service: str, instance: str) -> Iterator[subprocess.Popen[str]]:
    """Run a guard in a process; on entry it is fresh."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration._guarding", settings.kafka, settings.prefix, service, instance],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def fresh(*processes: subprocess.Popen[str]) -> None:
    """Wait until they are; the test's own loop has watermarks to write meanwhile."""
    for process in processes:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "fresh\n"


async def asked(settings: Settings, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """Run `lapse fleet --json`; return its exit code and rows."""
    process = await asyncio.create_subprocess_exec(
        *program("fleet", "--json", *arguments, *flags_of(settings)), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode in {0, 1}, err.decode()
    assert b"Traceback" not in err, err.decode()
    return process.returncode, [json.loads(line) for line in out.splitlines()]


async def until_seen(
    settings: Settings, wanted: dict[tuple[str, str | None], set[str]], timeout_s: float = 90
) -> tuple[int, list[dict[str, Any]]]:
    """Ask until exactly this stands out of these and nobody else is there; return the exit code and the rows."""
    give_up_at = time.monotonic() + timeout_s
    while True:
        code, rows = await asked(settings)
        found = {(row["service"], row["instance"]): {one["kind"] for one in row["findings"]} for row in rows}
        if found == wanted:
            return code, rows
        assert time.monotonic() < give_up_at, (found, rows)


async def publish(writer: Writer) -> None:
    touch = {"subject": "u-1", "tenant": None, "age_ms": 0}
    session = session_reference("s")
    records = [
        SessionTouched(session=session, subject="u-1", service="shop", age_ms=0),
        PackedTouches.model_validate({"service": "legacy", "touches": [[session, *touch.values()]]}),
    ]
    for record in records:
        await writer.put(writer.topics.activity, 1, encode(record))


@pytest.mark.slow
async def test_a_stopped_guard_and_a_service_without_one_stand_out(settings: Settings) -> None:
    session = session_reference("s")
    async with writing(settings) as writer:
        await publish(writer)
        with guarding(settings, "shop", "a") as a, guarding(settings, "shop", "b") as b:
            await fresh(a, b)
            in_order = {("shop", "a"): set[str](), ("shop", "b"): set[str](), ("legacy", None): {"unguarded"}}
            code, rows = await until_seen(settings, in_order)
            assert code == 1
            (row,) = [row for row in rows if row["instance"] == "a"]
            assert row["version"]
            # One machine, one clock: the estimate is right to what a busy machine delays a write by.
            assert abs(row["clock_offset_ms"]) < 2_000

            os.kill(b.pid, signal.SIGSTOP)
            await writer.revoke(Revocation(id="r-1", session=session, subject="u-1"))
            await until_seen(settings, {**in_order, ("shop", "b"): {"silent", "revocation_missing"}})

            code, ones = await asked(settings, "--revocation", "r-1")
            assert code == 1
            states = {(one["service"], one["instance"]): one["state"] for one in ones}
            assert states == {("shop", "a"): "applied", ("shop", "b"): "missing", ("legacy", None): "unguarded"}
            (one,) = [one for one in ones if one["instance"] == "a"]
            assert 0 <= one["after_ms"] < 5_000
            (one,) = [one for one in ones if one["instance"] == "b"]
            assert one["silent_ms"] >= 5_000

            table = await asyncio.to_thread(lapse, "fleet", settings=settings)
            assert "has no guard" in table.out
            assert "silent for" in table.out
            assert table.code == 1
            table = await asyncio.to_thread(lapse, "fleet", "--revocation", "r-1", settings=settings)
            assert "NOT APPLIED" in table.out
            assert "NO GUARD" in table.out

            os.kill(b.pid, signal.SIGCONT)
            await until_seen(settings, in_order)
            _, ones = await asked(settings, "--revocation", "r-1")
            assert {one["instance"]: one["state"] for one in ones if one["service"] == "shop"} == {
                "a": "applied",
                "b": "applied",
            }


@pytest.mark.slow
async def test_a_guard_that_stops_leaves_one_that_is_killed_stays_and_a_service_all_of_whose_guards_stopped_has_none(
    settings: Settings,
) -> None:
    async with writing(settings) as writer:
        with (
            guarding(settings, "shop", "runs") as runs,
            guarding(settings, "shop", "stops") as stops,
            guarding(settings, "shop", "dies") as dies,
            guarding(settings, "legacy", "only") as only,
        ):
            await fresh(runs, stops, dies, only)
            everybody = [("shop", "runs"), ("shop", "stops"), ("shop", "dies"), ("legacy", "only")]
            await until_seen(settings, {one: set() for one in everybody})  # each has reported since it is fresh
            for process in (stops, only):
                await asyncio.to_thread(process.communicate, "")
                assert process.returncode == 0
            dies.kill()

            async def going_on() -> None:
                while True:
                    await publish(writer)
                    await asyncio.sleep(1.0)

            going = asyncio.create_task(going_on())
            wanted = {("shop", "runs"): set[str](), ("shop", "dies"): {"silent"}, ("legacy", None): {"unguarded"}}
            try:
                code, rows = await until_seen(settings, wanted)
            finally:
                going.cancel()
            assert code == 1
            (row,) = [row for row in rows if row["instance"] == "runs"]
            assert (row["stopped"], row["stale_after_ms"], row["on_stale"]) == (False, 10_000, "allow")


@pytest.mark.slow
async def test_a_stop_is_shown_and_a_report_of_an_older_sdk_is_read(settings: Settings) -> None:
    old = dict(EXAMPLES["guard.status"])
    for added in ("stopping", "stale_after_ms", "on_stale"):
        del old[added]
    old |= {"service": "shop", "applied": {}}
    reports = [
        old | {"instance": "old"},
        old | {"instance": "stopped"},
        # So it is told to the window's end, however slow the program is.
        old | {"instance": "stopped", "stopping": True, "allowed_while_stale": 1},
    ]
    async with writing(settings) as writer:
        for report in reports:
            key = f"shop/{report['instance']}".encode()
            await writer.producer.send_and_wait(writer.topics.enforcement, orjson.dumps(report), key=key)
        _, rows = await asked(settings)
        assert {row["instance"]: row["stopped"] for row in rows} == {"old": False, "stopped": True}
        assert {row["instance"]: row["on_stale"] for row in rows} == {"old": None, "stopped": None}
        table = await asyncio.to_thread(lapse, "fleet", settings=settings)
        (line,) = [line for line in table.out.splitlines() if "stopped" in line]
        assert re.search(r"stopped \d+\.\d s ago", line)
        screen = await asyncio.to_thread(live_screen, settings, b"stopped")
        assert b"shop" in screen


@pytest.mark.slow
async def test_an_estate_in_order_is_told_by_exit_code_0_and_seen_live(settings: Settings) -> None:
    async with writing(settings) as writer:
        await writer.watermarks()
        with guarding(settings, "shop", "a") as a:
            await fresh(a)
            code, _ = await until_seen(settings, {("shop", "a"): set()})
            assert code == 0
            screen = await asyncio.to_thread(live_screen, settings, b"shop")
            assert b"records of activity" in screen
            assert b"shop" in screen


def live_screen(settings: Settings, wanted: bytes) -> bytes:
    """Run `lapse fleet --live` at a terminal until it shows the text twice; end it by Ctrl-C."""
    mine, its = pty.openpty()
    process = subprocess.Popen(
        program("fleet", "--live", *flags_of(settings)),
        env={**os.environ, "COLUMNS": "200"},  # no cell is broken into lines
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
    )
    os.close(its)
    shown = b""
    try:
        give_up_at = time.monotonic() + 60
        while shown.count(wanted) < 2:
            assert time.monotonic() < give_up_at, shown
            if select.select([mine], [], [], 1)[0]:
                shown += os.read(mine, 65_536)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(mine)
    return shown


async def test_an_unknown_revocation_is_a_failure_that_says_where_ids_come_from(settings: Settings) -> None:
    async with writing(settings):
        outcome = await asyncio.to_thread(lapse, "fleet", "--revocation", "nowhere", settings=settings)
    assert outcome.code == 1
    assert "lapse revoke" in outcome.err


def test_without_topics_it_says_how_to_make_them(settings: Settings) -> None:
    outcome = lapse("fleet", settings=settings)
    assert outcome.code == 1
    assert "lapse topics apply" in outcome.err


def test_live_is_for_people(settings: Settings) -> None:
    assert lapse("fleet", "--live", "--json", settings=settings).code == 2
    assert lapse("fleet", "--within", "soon", settings=settings).code == 2
