"""Three brokers on this machine that may be killed one by one: what production has three machines for.

Each is broker and controller (KRaft), with every internal topic on all three and two of them needed to acknowledge
(RF 3, min ISR 2): any one may die and nothing acknowledged is lost; with two away nothing can be written. The same jars
and properties as the single broker of `lapse broker up`, of which this changes the replication alone.

Ports are kept over restarts, as machines keep their names.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from confluent_kafka.admin import AdminClient

from lapse.pipeline.broker import maven
from lapse.pipeline.broker.files import infra
from lapse.pipeline.broker.probe import brokers_serving
from lapse.pipeline.broker.properties import CLUSTER_ID, properties

from tests.faults.small_disk import SmallDisk

__all__ = ["NODES", "Cluster", "three_brokers"]

NODES: Final = (1, 2, 3)

# A broker that was killed recovers its logs first, and three JVMs at once on two busy cores take several times what one
# does.
_SERVES_WITHIN_S: Final = 120.0
_ENDS_WITHIN_S: Final = 60.0
# As the single broker's, with less heap: some 380 MB resident each.
_JVM: Final = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true")
_REPLICATED: Final = {
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    "share.coordinator.state.topic.replication.factor": "3",
    "share.coordinator.state.topic.min.isr": "2",
    "default.replication.factor": "3",
    "min.insync.replicas": "2",
}

_QUORUM: Final = "org.apache.kafka.raft.QuorumState"


class Cluster:
    """Three brokers, by node number, each a process of ours."""

    def __init__(self, directory: Path) -> None:
        java = maven.find_java()
        assert java is not None, "three brokers need Java here: a container's process is not ours to stop"
        self._directory = directory
        logging = directory / "log4j2.xml"
        # Who leads the quorum is told to no client; the nodes log it.
        shipped = infra("log4j2.xml").read_text("utf-8")
        logging.write_text(shipped.replace("</Loggers>", f'<Logger name="{_QUORUM}" level="INFO"/></Loggers>'))
        self._jvm = [str(java), *_JVM, f"-Dlog4j2.configurationFile={logging.as_uri()}"]
        self._path = f"{maven.jars(lambda _: None)}/*"
        ports = _free_ports(2 * len(NODES))
        self._ports = dict(zip(NODES, ports[: len(NODES)], strict=True))
        self._controllers = dict(zip(NODES, ports[len(NODES) :], strict=True))
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._disks: dict[int, SmallDisk] = {}

    @property
    def bootstrap(self) -> str:
        """All three: a client must find the others when one is gone."""
        return ",".join(f"127.0.0.1:{port}" for port in self._ports.values())

    def start(self, *nodes: int) -> None:
        """Start these (without any: all) that do not run, and return when they serve."""
        wanted = [node for node in nodes or NODES if not self.runs(node)]
        fresh = [node for node in wanted if not (self._home(node) / "data" / "meta.properties").exists()]
        formatting = [self._format(node) for node in fresh]
        for process in formatting:
            assert process.wait(_ENDS_WITHIN_S) == 0, "a broker's directory could not be formatted"
        for node in wanted:
            self._run(node)
        self.await_serving(*wanted)

    def await_serving(self, *nodes: int) -> None:
        """Wait until each of these knows of as many brokers as run."""
        until = time.monotonic() + _SERVES_WITHIN_S
        running = sum(self.runs(node) for node in NODES)
        for node in nodes or NODES:
            while brokers_serving(f"127.0.0.1:{self._ports[node]}", timeout_s=1.0) < running:
                assert self.runs(node), f"broker {node} has ended: see {self._home(node)}"
                assert time.monotonic() < until, f"broker {node} does not serve: see {self._home(node)}"
                time.sleep(0.1)

    def runs(self, node: int) -> bool:
        return node in self._processes and self._processes[node].poll() is None

    def kill(self, *nodes: int) -> None:
        """kill -9: no controlled shutdown; the others notice after broker.session.timeout.ms (9 s)."""
        for node in nodes:
            self._processes[node].kill()
        for node in nodes:
            self._processes[node].wait(_ENDS_WITHIN_S)

    def term(self, *nodes: int) -> None:
        """Ask to end: leaders move away first."""
        for node in nodes:
            self._processes[node].terminate()
        for node in nodes:
            try:
                self._processes[node].wait(_ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:  # without a quorum a controlled shutdown waits for ever
                self.kill(node)

    def stop(self, node: int) -> None:
        """SIGSTOP: connections stay, nothing answers."""
        os.kill(self._processes[node].pid, signal.SIGSTOP)

    def cont(self, node: int) -> None:
        os.kill(self._processes[node].pid, signal.SIGCONT)

    @contextlib.contextmanager
    def small_disk(self, node: int, free_mib: int) -> Iterator[SmallDisk]:
        """Have this broker, which is killed and started for it, keep its logs on a disk with so much left."""
        self.kill(node)
        self._disks[node] = SmallDisk(self._home(node) / "data", free_mib)
        try:
            self.start(node)
            self.await_in_sync()
            yield self._disks[node]
        finally:
            if self.runs(node):
                self.kill(node)
            self._disks.pop(node).take_away()

    def await_end(self, node: int, within_s: float) -> None:
        """Wait until this broker has ended by itself."""
        self._processes[node].wait(within_s)

    def heal(self) -> None:
        """Let all three run and be in sync again."""
        for node, process in self._processes.items():
            if self.runs(node):
                process.send_signal(signal.SIGCONT)
        self.start()
        self.await_serving()
        self.await_in_sync()

    def end(self) -> None:
        """End everything, by force."""
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
        for process in self._processes.values():
            process.wait(_ENDS_WITHIN_S)

    def leader(self, topic: str, partition: int) -> int:
        """Return the node that leads this partition."""
        return self._admin().list_topics(topic, timeout=20).topics[topic].partitions[partition].leader

    def coordinator_of_transaction(self, transactional_id: str) -> int:
        """Return the node that coordinates this producer's transactions."""
        # Kafka's TransactionStateManager.partitionFor: Java's String.hashCode of the id, positive, modulo.
        code = 0
        for character in transactional_id:
            code = (31 * code + ord(character)) & 0xFFFFFFFF
        topic = "__transaction_state"
        count = len(self._admin().list_topics(topic, timeout=20).topics[topic].partitions)
        return self.leader(topic, (code & 0x7FFFFFFF) % count)

    def controller(self) -> int:
        """Return the node that is the active controller."""
        leaders = {node: self._last_leadership(node) for node in NODES}
        found = max(leaders, key=lambda node: leaders[node])
        assert leaders[found] >= 0, "no node has logged that it leads the quorum"
        return found

    def await_in_sync(self) -> None:
        """Wait until every partition has all its replicas in sync."""
        until = time.monotonic() + _SERVES_WITHIN_S
        while True:
            topics = self._admin().list_topics(timeout=20).topics.values()
            lagging = [
                f"{topic.topic}-{number}"
                for topic in topics
                for number, partition in topic.partitions.items()
                if len(partition.isrs) < len(partition.replicas) or partition.leader < 0
            ]
            if not lagging:
                return
            assert time.monotonic() < until, f"not in sync: {lagging[:10]}"
            time.sleep(0.2)

    def _last_leadership(self, node: int) -> int:
        """Return the latest epoch of the quorum that the node has led, by its log; -1 for none."""
        log = self._home(node) / "broker.log"
        told = log.read_text(errors="replace") if log.exists() else ""
        return max((int(epoch) for epoch in re.findall(r"transition to Leader\(.*?\bepoch=(\d+)", told)), default=-1)

    def _admin(self) -> AdminClient:
        serving = [f"127.0.0.1:{self._ports[node]}" for node in NODES if self.runs(node)]
        return AdminClient({"bootstrap.servers": ",".join(serving), "log_level": 0})

    def _home(self, node: int) -> Path:
        return self._directory / f"broker-{node}"

    def _format(self, node: int) -> subprocess.Popen[bytes]:
        home = self._home(node)
        home.mkdir(parents=True, exist_ok=True)
        here = f"127.0.0.1:{self._ports[node]}"
        values = properties(
            listen=here, advertised=here, controller=f"127.0.0.1:{self._controllers[node]}", data=str(home / "data")
        )
        voters = ",".join(f"{one}@127.0.0.1:{port}" for one, port in self._controllers.items())
        values |= _REPLICATED | {"node.id": str(node), "controller.quorum.voters": voters}
        config = home / "server.properties"
        config.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
        tool = ["kafka.tools.StorageTool", "format", "--cluster-id", CLUSTER_ID, "--config", str(config)]
        with (home / "format.out").open("wb") as out:
            log = f"-Dlapse.broker.log={home / 'format.log'}"
            return subprocess.Popen([*self._jvm, log, "-cp", self._path, *tool], stdout=out, stderr=out)

    def _run(self, node: int) -> None:
        home = self._home(node)
        within = self._disks[node].within if node in self._disks else []
        with (home / "broker.out").open("ab") as out:
            self._processes[node] = subprocess.Popen(
                [
                    *within, *self._jvm, f"-Dlapse.broker.log={home / 'broker.log'}",
                    "-cp", self._path, "kafka.Kafka", str(home / "server.properties"),
                ],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip


@contextlib.contextmanager
def three_brokers(directory: Path) -> Iterator[Cluster]:
    """Give a cluster that serves; its processes are ended for certain."""
    cluster = Cluster(directory)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.end()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets: Iterable[socket.socket] = [stack.enter_context(socket.socket()) for _ in range(count)]
        found = []
        for one in sockets:
            one.bind(("127.0.0.1", 0))
            found.append(int(one.getsockname()[1]))
        return found
