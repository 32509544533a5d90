"""Goal: an order that the broker does not take is told, in time, as one that may hold or not; no command hangs.

Method: a broker of this test's own is stopped in its tracks (SIGSTOP: connections stay, nothing answers) after the
command has connected, the moment at which its client would wait for ever.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from lapse.pipeline.broker import maven
from lapse.pipeline.operations import connection, policies, revocations
from lapse.pipeline.operations.topics import apply_topics
from lapse.pipeline.settings import Settings
from lapse.schemas import Policy, Revocation, RuntimeFault

pytestmark = [pytest.mark.broker, pytest.mark.slow]

# REQUEST_TIMEOUT_MS, and what putting the client away may take.
TOLD_WITHIN_S = 15 + 5 + 5


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[Settings, int]]:
    """Settings for a broker of this test's own, and the broker's process id."""
    java = maven.find_java()
    assert java is not None, "a broker that may be stopped needs Java here: a container's process is not ours"
    started = maven.start(tmp_path / "broker", java, lambda _: None)
    assert started.pid is not None
    try:
        yield Settings(kafka=started.bootstrap, prefix="t.", partitions=2, directory=tmp_path), started.pid
    finally:
        os.kill(started.pid, signal.SIGCONT)
        maven.stop(started)


async def test_an_order_that_is_not_taken_is_told(own: tuple[Settings, int], monkeypatch: pytest.MonkeyPatch) -> None:
    settings, pid = own
    await apply_topics(settings)

    @contextlib.asynccontextmanager
    async def stopped_once_connected(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
        async with connection.producing(settings) as producer:
            os.kill(pid, signal.SIGSTOP)
            yield producer

    for module in (revocations, policies):
        monkeypatch.setattr(module, "producing", stopped_once_connected)
    began = time.monotonic()
    with pytest.raises(RuntimeFault, match=r"acknowledged by 0 of 2 partitions .* may hold elsewhere: give the order"):
        await revocations.revoke(settings, Revocation(id="r-1", everyone=True, reason="incident"))
    assert time.monotonic() - began < TOLD_WITHIN_S
    os.kill(pid, signal.SIGCONT)
    began = time.monotonic()
    with pytest.raises(RuntimeFault, match="no Kafka broker answers"):
        await policies.set_policy(settings, Policy(name="short", idle_ms=60_000, absolute_ms=None))
    assert time.monotonic() - began < TOLD_WITHIN_S
    gc.collect()  # a connection that was left open would be complained of here
