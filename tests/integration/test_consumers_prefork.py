"""Are guard and publisher right in a pre-forked service, over a real broker?

A process tree of its own (tests/consumers/prefork.py): a parent that used both before it forked, and workers with
threads. Each process must be right from its first check, hear a revocation live, and tell what it noted, once.
"""

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lapse.consumers import session_reference
from lapse.pipeline.settings import Settings
from lapse.schemas import (
    GuardStatus,
    PackedTouches,
    Revocation,
    SessionClosed,
    SessionStarted,
    SessionTouched,
    TopicNames,
    parse_activity,
    parse_enforcement,
)

from tests.consumers.prefork import ENDED, LATER, THREADS
from tests.consumers.support import read_to_end, writing

ROOT = Path(__file__).parents[2]
WORKERS = 3


@pytest.mark.slow
async def test_every_process_of_the_tree_is_right_from_its_first_check_and_tells_its_own(settings: Settings) -> None:
    topics = TopicNames(settings.prefix)
    async with writing(settings) as writer:
        await writer.end(ENDED, "u-1")
        command = (sys.executable, "-m", "tests.consumers.prefork", settings.kafka, settings.prefix, str(WORKERS))
        tree = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        assert tree.stdout is not None
        async with asyncio.timeout(120):
            ready = [json.loads(await tree.stdout.readline()) for _ in range(WORKERS + 1)]
            await writer.revoke(Revocation(id="r-1", session=LATER, subject="u-2"))
            rest, said = await tree.communicate()
        done: list[dict[str, Any]] = [json.loads(line) for line in rest.splitlines()]
        names = {"parent", *(f"worker-{number}" for number in range(WORKERS))}
        wanted = {(name, thread) for name in names for thread in range(THREADS)}
        activity = await read_to_end(settings, topics.activity)
        reports = [parse_enforcement(record.value) for record in await read_to_end(settings, topics.enforcement)]
    assert {line["name"] for line in ready} == names
    assert len({line["pid"] for line in ready}) == len(names)
    assert not [line for line in ready if line["wrong"]]
    assert {line["name"] for line in done if line.get("saw")} == names
    assert [line["codes"] for line in done if line["name"] == "all"] == [[0] * WORKERS]
    # Nothing was left behind that complains when it is finalized; what aiokafka says of a busy broker is its own.
    lines = said.decode().splitlines()
    assert not [line for line in lines if not line.startswith("ERROR:aiokafka.")], said.decode()
    touched: Counter[str] = Counter()
    others: Counter[tuple[str, str]] = Counter()
    for record in activity:
        told = parse_activity(record.value)
        if isinstance(told, PackedTouches):
            touched.update(entry[0] for entry in told.touches)
        elif isinstance(told, SessionTouched):
            touched[told.session] += 1
        elif isinstance(told, SessionClosed | SessionStarted):
            others[told.type, told.session] += 1
    print(said.decode())  # in the report of a failure: what the processes said
    assert touched == Counter({session_reference(f"{name}-{thread}"): 1 for name, thread in wanted})
    assert others == Counter(
        {("session.closed", session_reference(f"{name}-0")): 1 for name in names}
        | {("session.started", session_reference("parent-login")): 1}
    )
    last = {report.instance: report for report in reports if isinstance(report, GuardStatus)}
    assert len(last) == len(names)
    assert all(report.stopping for report in last.values())
