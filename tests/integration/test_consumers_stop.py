"""Goal: who is told to stop says so in its last report, and does not wait for a broker that is away to say it.

Method: a guard, a sidecar and an applier on a real broker, the last two as programs that get SIGTERM; a port where no
broker is.
"""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from lapse.consumers import Guard, session_reference
from lapse.consumers.guard.reports import LAST_REPORT_TIMEOUT_S
from lapse.pipeline.settings import Settings
from lapse.schemas import GuardStatus, TopicNames, parse_enforcement

from tests.cli.running import flags_of, program, program_environment
from tests.consumers.support import free_port, read_to_end, writing

PATIENCE_S = 90.0


async def reports(settings: Settings, service: str) -> list[GuardStatus]:
    """Return the statuses of the only instance of a service, oldest first."""
    read = [
        parse_enforcement(record.value)
        for record in await read_to_end(settings, TopicNames(settings.prefix).enforcement)
    ]
    return [report for report in read if isinstance(report, GuardStatus) and report.service == service]


async def test_the_last_report_of_a_guard_says_that_it_stops_until_it_starts_again(settings: Settings) -> None:
    async with writing(settings):
        guard = Guard(settings.kafka, service="shop", prefix=settings.prefix, stale_after_ms=4_000, on_stale="deny")
        async with guard:
            pass
        stopped = await reports(settings, "shop")
        assert [report.stopping for report in stopped] == [*[False] * (len(stopped) - 1), True]
        assert {(report.stale_after_ms, report.on_stale) for report in stopped} == {(4_000, "deny")}
        async with guard:
            async with asyncio.timeout(PATIENCE_S):
                while len(found := await reports(settings, "shop")) == len(stopped):
                    pass
            assert not found[-1].stopping


async def test_a_guard_whose_broker_is_away_stops_in_time() -> None:
    guard = Guard(f"127.0.0.1:{free_port()}", service="shop", ready_timeout_s=0.1)
    await guard.start()
    began_at = time.monotonic()
    await guard.stop()
    # The report's deadline, and as much again for ending the clients on a busy machine.
    assert time.monotonic() - began_at < 2 * LAST_REPORT_TIMEOUT_S + 1.0
    assert guard.check(session_reference("live")).stale


@pytest.mark.slow
@pytest.mark.parametrize("service", ["sidecar", "apply-webhook"])
async def test_a_program_that_is_told_to_stop_says_so(settings: Settings, tmp_path: Path, service: str) -> None:
    commands = {
        "sidecar": ("sidecar", "--cookie", "sid", "--service", "sidecar", "--port", str(free_port())),
        "apply-webhook": ("apply", "webhook", f"http://127.0.0.1:{free_port()}/", "--allow", "127.0.0.0/8"),
    }
    async with writing(settings):
        process = await asyncio.create_subprocess_exec(
            *program(*commands[service], *flags_of(settings)),
            env=program_environment(LAPSE_WEBHOOK_SECRET="whsec_" + "c2VjcmV0" * 4),
            cwd=tmp_path,
        )
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await reports(settings, service):
                    assert process.returncode is None
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        stopped = await reports(settings, service)
        assert [report.stopping for report in stopped] == [*[False] * (len(stopped) - 1), True]
