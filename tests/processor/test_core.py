"""Goal: a partition's place is filled by the restore that was begun for it, and by no other.

Method: the core without Faust and without a broker; the test brings the restores to their ends in the order it likes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import cast

import pytest

from lapse.pipeline.engine import PartitionEngine
from lapse.pipeline.processor import core as core_module
from lapse.pipeline.processor.checkpoints import StateWriter
from lapse.pipeline.processor.core import Core
from lapse.pipeline.processor.partition import WorkerParts
from lapse.pipeline.processor.restore import Restored, engine_settings
from lapse.pipeline.settings import Settings

KEY = "a key of this test, nothing to hide"
SETTINGS = Settings(kafka="127.0.0.1:1", partitions=2, worker="w-1", worker_key=KEY)


class Writer:
    def __init__(self) -> None:
        self.stopped = asyncio.Event()

    async def stop(self) -> None:
        self.stopped.set()


async def test_what_is_restored_for_a_place_given_up_meanwhile_is_let_go_though_the_partition_is_owned_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may be old: whoever owned the partition in between has gone on."""
    asked: list[asyncio.Future[dict[int, Restored]]] = []
    began = asyncio.Event()

    async def restore(
        settings: Settings, worker_key: bytes, partitions: Iterable[int], reach: Callable[[str], None]
    ) -> dict[int, Restored]:
        asked.append(asyncio.get_running_loop().create_future())
        began.set()
        return await asked[-1]

    monkeypatch.setattr(core_module, "restore", restore)
    core = Core(SETTINGS, crash=lambda _: None)
    await core.assigned([0])
    await began.wait()
    await core.assigned([0, 1])
    await core.revoked()
    await core.assigned([0])
    writer = Writer()
    engine = PartitionEngine(engine_settings(SETTINGS, KEY.encode(), 0))
    asked[0].set_result({0: Restored(engine, cast(StateWriter, writer), 0, True, None)})
    async with asyncio.timeout(5):
        await writer.stopped.wait()
    assert core.fault is None
    await core.stop()


def test_the_workers_key_is_shown_by_nothing_that_a_log_could_print() -> None:
    assert KEY not in repr(engine_settings(SETTINGS, KEY.encode(), 0))
    assert KEY not in repr(SETTINGS)
    assert not WorkerParts.__dataclass_fields__["worker_key"].repr
