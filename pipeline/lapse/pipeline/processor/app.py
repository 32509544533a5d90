"""How does Faust run the core?

Faust owns the worker's life, group membership, assignment, and the consumer thread that fetches; the core (core.py)
owns everything that must be exact. Their border, and why it lies there:

- `BatchScheduler` makes one message of all records of a partition in a fetch: Faust handles some 12,000 messages a
  second, but 300,000 records a second in batches (measured).
- The activity topic has `acks=False` and the agent reads `noack().events()`: Faust never commits it. The core commits
  positions in the transactions of its checkpoints (Faust's own commits stall behind offset gaps, and after an exception
  in an agent it would commit what failed).
- The state is not a Faust table: Faust cannot read back a transactional changelog.
- `on_partitions_revoked` comes while Faust waits for us, so the last checkpoints are written in it. A clean stop
  sends no such signal, only `on_before_shutdown`.
- Static membership by `LAPSE_WORKER`: a worker that restarts within the session timeout finds its partitions again, and
  the others never stop (measured: own partitions 2.8 s, others 0.3 s; without it 8.1 and 5.1 s).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Final

import faust
from faust.types.transports import SchedulingStrategyT

from lapse.pipeline.clients import servers
from lapse.pipeline.processor.core import Core
from lapse.pipeline.settings import Settings
from lapse.schemas import TopicNames

__all__ = ["BatchScheduler", "ProcessorApp", "build_app"]

# A worker that died is noticed after so long; the broker refuses below 6 s (group.min.session.timeout.ms).
_SESSION_TIMEOUT_S: Final = 6.0
_HEARTBEAT_S: Final = 0.5
# The others wait so long for the last checkpoints of a worker that must let go (core._LAST_CHECKPOINT_S, and a
# restore).
_REBALANCE_TIMEOUT_S: Final = 60.0
_REQUEST_TIMEOUT_S: Final = 30.0
# A spare worker, one without partitions, polls nothing and would be thrown out for it, for ever (aiokafka 1187).
_POLL_INTERVAL_S: Final = 86_400.0
# Records of one poll, over all partitions: a batch of 20,000 holds the loop for some 40 ms.
_POLL_RECORDS: Final = 20_000
# Batches that wait in the agent's queue: 16 of at most 20,000 records; then Faust stops fetching.
_AGENT_BATCHES: Final = 16


class BatchScheduler(SchedulingStrategyT):
    """Gives Faust one message a partition and fetch: its last record, with the list of all as the value."""

    def __init__(self) -> None:
        """It keeps nothing; Faust makes one itself."""

    def iterate(self, records: Mapping[Any, list[Any]]) -> Iterator[tuple[Any, Any]]:
        """Yield (partition, message). Faust keeps the last offset as its read position."""
        for tp, batch in records.items():
            if batch:
                yield tp, dataclasses.replace(batch[-1], key=None, value=batch)


class ProcessorApp(faust.App):
    """A Faust app that keeps nothing on disk."""

    async def on_first_start(self) -> None:
        """Make no data directory: there are no local tables."""


def build_app(settings: Settings, core: Core) -> ProcessorApp:
    """Return the Faust app of a worker, with its one agent and its signals connected to the core."""
    topics = TopicNames(settings.prefix)
    app = ProcessorApp(
        settings.group,
        broker=[f"kafka://{server}" for server in servers(settings.kafka)],
        ConsumerScheduler=BatchScheduler,
        consumer_group_instance_id=settings.worker,
        consumer_auto_offset_reset="earliest",
        broker_session_timeout=_SESSION_TIMEOUT_S,
        broker_heartbeat_interval=_HEARTBEAT_S,
        broker_rebalance_timeout=_REBALANCE_TIMEOUT_S,
        broker_request_timeout=_REQUEST_TIMEOUT_S,
        broker_max_poll_interval=_POLL_INTERVAL_S,
        broker_max_poll_records=_POLL_RECORDS,
        stream_buffer_maxsize=_AGENT_BATCHES,
        stream_wait_empty=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        worker_redirect_stdouts=False,
    )
    activity = app.topic(topics.activity, key_serializer="raw", value_serializer="raw", acks=False)

    @app.agent(activity)
    async def engine(stream: Any) -> None:
        async for event in stream.noack().events():
            await core.process(event.message.partition, event.value)

    @app.on_partitions_assigned.connect
    async def assigned(_: Any, /, *args: Any, **__: Any) -> None:
        await core.assigned(tp.partition for tp in args[0] if tp.topic == topics.activity)

    @app.on_partitions_revoked.connect
    async def revoked(_: Any, /, *args: Any, **__: Any) -> None:
        await core.revoked()

    @app.on_before_shutdown.connect
    async def stopping(_: Any, /, *args: Any, **__: Any) -> None:
        await core.stop()

    return app
