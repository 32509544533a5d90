"""Goal: Faust hands over batches, never single records, and is set up so that it commits nothing by itself.

Method: the scheduler with real consumer records; the app as a worker builds it.
"""

from __future__ import annotations

from aiokafka import ConsumerRecord
from faust.types import TP

from lapse.pipeline.processor.app import BatchScheduler, build_app
from lapse.pipeline.processor.core import Core
from lapse.pipeline.settings import Settings

SETTINGS = Settings(kafka="127.0.0.1:1", worker="w-1", worker_key="k" * 32, group="g")


def record(offset: int) -> ConsumerRecord:
    return ConsumerRecord("t", 1, offset, 1_000 + offset, 1, b"key", b"%d" % offset, None, 3, 1, ())


def test_a_fetch_becomes_one_message_a_partition_with_the_last_offset() -> None:
    batch = [record(4), record(5), record(9)]
    messages = list(BatchScheduler().iterate({TP("t", 1): batch, TP("t", 2): []}))
    ((tp, message),) = messages
    assert tp == TP("t", 1)
    assert message.offset == 9
    assert message.key is None
    assert message.value is batch
    assert batch[-1].value == b"9"


async def test_faust_commits_nothing_keeps_nothing_and_serves_nothing() -> None:
    app = build_app(SETTINGS, Core(SETTINGS, crash=lambda _: None))
    (agent,) = app.agents.values()
    assert not agent.channel.acks
    assert app.conf.consumer_auto_offset_reset == "earliest"
    assert app.conf.consumer_group_instance_id == "w-1"
    assert app.conf.id == "g"
    assert not app.conf.web_enabled
    assert not app.conf.topic_allow_declare
    assert not app.in_transaction


async def test_a_worker_without_partitions_is_not_thrown_out_of_the_group() -> None:
    """It polls nothing, and who polls nothing for the poll interval leaves the group and never comes back."""
    app = build_app(SETTINGS, Core(SETTINGS, crash=lambda _: None))
    assert app.conf.broker_max_poll_interval >= 24 * 3_600
