"""How is a broker on somebody's own machine configured, however it is started?

One node that is broker and controller (KRaft). The same properties reach it as a file (Maven), as environment variables
(the image `apache/kafka` reads `KAFKA_NODE_ID` as `node.id`) and, written out for people, in `compose.yaml`; a test
holds the three together.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "CLUSTER_ID",
    "COMMON",
    "CONTAINER_DATA",
    "CONTAINER_PORT",
    "IMAGE",
    "KAFKA_VERSION",
    "as_environment",
    "container_environment",
    "properties",
]

KAFKA_VERSION: Final = "4.3.1"
IMAGE: Final = f"apache/kafka:{KAFKA_VERSION}"

# Any 16 bytes in base64url; a fixed one, so that a data directory can be formatted again over itself.
CLUSTER_ID: Final = "bGFwc2UtbG9jYWwta2Fmaw"

# Of the image: where it listens, and the volume it declares for its logs.
CONTAINER_PORT: Final = 9092
CONTAINER_DATA: Final = "/var/lib/kafka/data"

COMMON: Final[dict[str, str]] = {
    "node.id": "1",
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    # Topics are made by `lapse topics apply`, with the timestamps and cleanup that the rules stand on. One that comes
    # into being by itself, with neither, would look right and decide wrongly.
    "auto.create.topics.enable": "false",
    # One node has nobody to replicate to; the defaults ask for three.
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # 50 partitions each by default: 100 logs to open at every start, for a handful of groups.
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    # Waiting 3 s for more members costs every start of a lone worker 3 s.
    "group.initial.rebalance.delay.ms": "0",
    # The cleaner takes its buffer at start; the default of 128 MB is a third of the 400 MB heap. 16 MB index 600,000
    # keys a pass (24 bytes each, 90 % full), more than the state of a million sessions has (64 sessions a record).
    "log.cleaner.dedupe.buffer.size": "16777216",
    "num.network.threads": "2",
    "num.io.threads": "4",
}


def properties(
    *, listen: str, advertised: str, controller: str, data: str, inside: str | None = None
) -> dict[str, str]:
    """Return the whole of `server.properties`.

    Args:
        listen: `host:port` to listen on for clients.
        advertised: `host:port` under which clients reach it.
        controller: `host:port` of the controller, for the node itself alone.
        data: the directory of the logs.
        inside: in a container, `host:port` under which the node reaches itself: what is advertised is the host's port,
            and transactions would wait for ever for their markers, which a broker sends to itself as to any other.
    """
    addressed = {
        "listeners": f"PLAINTEXT://{listen},CONTROLLER://{controller}",
        "advertised.listeners": f"PLAINTEXT://{advertised}",
        # Static voters: the port may change from start to start, and a dynamic quorum writes its endpoints to the log.
        "controller.quorum.voters": f"1@{controller}",
        "log.dirs": data,
    }
    if inside is not None:
        addressed["listeners"] += f",INSIDE://{inside}"
        addressed["advertised.listeners"] += f",INSIDE://{inside}"
        addressed["inter.broker.listener.name"] = "INSIDE"
        addressed["listener.security.protocol.map"] = COMMON["listener.security.protocol.map"] + ",INSIDE:PLAINTEXT"
    return COMMON | addressed


def container_environment(advertised: str) -> dict[str, str]:
    """Return the environment of a container of `IMAGE` whose port `CONTAINER_PORT` clients reach as `advertised`."""
    values = properties(
        listen=f"0.0.0.0:{CONTAINER_PORT}",
        advertised=advertised,
        controller="127.0.0.1:9093",
        data=CONTAINER_DATA,
        inside="127.0.0.1:19092",
    )
    return as_environment(values) | {"CLUSTER_ID": CLUSTER_ID, "KAFKA_HEAP_OPTS": "-Xmx400m"}


def as_environment(values: dict[str, str]) -> dict[str, str]:
    """Return properties as the image `apache/kafka` takes them: `KAFKA_`, upper case, dots as underscores."""
    return {"KAFKA_" + name.upper().replace(".", "_"): value for name, value in values.items()}
