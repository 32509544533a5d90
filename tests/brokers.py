"""A real broker for the tests, whatever this machine has: one interface over three ways to get one.

The first that is there, as in `lapse.pipeline.broker`: LAPSE_KAFKA, a Docker engine through testcontainers, Java with
Maven. `LAPSE_TEST_BROKER=docker` (or `maven`) insists on one way, and then its failure is the tests' failure.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from confluent_kafka.admin import AdminClient, NewTopic

from lapse.pipeline.broker import NOTHING_THERE, docker, local, maven
from lapse.pipeline.broker.probe import brokers_serving
from lapse.schemas.errors import RuntimeFault

from tests.containers import ApacheKafkaContainer

__all__ = ["Broker", "make_topic", "remove_topics", "serving"]

# Some milliseconds on an idle machine.
_KNOWN_TIMEOUT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker that serves for the whole test session.

    Attributes:
        bootstrap: `host:port`.
        kind: `given`, `docker` or `maven`.
    """

    bootstrap: str
    kind: str


@contextlib.contextmanager
def serving(directory: Path, named: str | None) -> Iterator[Broker]:
    """Yield a broker that serves, and end it if it was started here.

    Args:
        directory: an empty directory for its data and logs.
        named: bootstrap servers that the user named, or None.
    """
    wanted = os.environ.get("LAPSE_TEST_BROKER")
    if named is not None and wanted is None:
        if brokers_serving(named) == 0:
            raise RuntimeFault(f"the broker that LAPSE_KAFKA names does not answer: {named}")
        yield Broker(named, "given")
        return
    with contextlib.ExitStack() as stack:
        yield _start(stack, directory, wanted)


def _start(stack: contextlib.ExitStack, directory: Path, wanted: str | None) -> Broker:
    java = maven.find_java()
    if wanted != "maven" and docker.engine() is not None:
        try:
            container = stack.enter_context(ApacheKafkaContainer())
        except Exception:
            # Whatever the engine's client raises where it may not pull: Java is as good, if it is there.
            if wanted is not None or java is None:
                raise
        else:
            return Broker(container.bootstrap(), "docker")
    if wanted == "docker":
        raise RuntimeFault("no Docker engine answers")
    if java is None:
        raise RuntimeFault(NOTHING_THERE)
    started = maven.start(directory, java, lambda _: None)
    stack.callback(local.stop_broker, directory, erase=True)
    return Broker(started.bootstrap, "maven")


def make_topic(broker: Broker, name: str, partitions: int = 1, config: Mapping[str, str] | None = None) -> None:
    """Make a topic and return when the broker knows it.

    The creation is acknowledged by the controller; the broker, the same process or not, learns of it from the metadata
    log a moment later, and until then calls the topic unknown.
    """
    admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})
    admin.create_topics([NewTopic(name, partitions, 1, config=dict(config or {}))])[name].result(timeout=10)
    until = time.monotonic() + _KNOWN_TIMEOUT_S
    while True:
        known = admin.list_topics(name, timeout=10).topics[name].partitions
        if len(known) == partitions and all(partition.leader >= 0 for partition in known.values()):
            return
        if time.monotonic() > until:
            raise TimeoutError(f"the broker does not know the topic {name} after {_KNOWN_TIMEOUT_S:.0f} s")
        time.sleep(0.02)


def remove_topics(broker: Broker, prefix: str) -> None:
    """Remove what a test made, so that a long session does not slow the broker down and a named one stays clean."""
    admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})
    made = [topic for topic in admin.list_topics(timeout=10).topics if topic.startswith(prefix)]
    if made:
        for done in admin.delete_topics(made, operation_timeout=10).values():
            with contextlib.suppress(Exception):  # already gone, or a test's own business
                done.result(timeout=10)
