"""Which broker is to be used here, and who ends it?

The first that is there: a broker that is named (`LAPSE_KAFKA`, a flag, a file), the one that already runs in this
directory, a Docker engine, Java with Maven. Nothing there: one sentence that says what to install.

Only one process at a time starts or stops the broker of a directory (a lock file); so starting twice gives one broker,
and a handle ends what it has started, never what it has found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from lapse.pipeline.broker import docker, maven, record
from lapse.pipeline.broker.probe import brokers_serving
from lapse.schemas.errors import RuntimeFault

__all__ = [
    "NOTHING_THERE",
    "BrokerHandle",
    "BrokerStatus",
    "broker_status",
    "find_or_start",
    "start_broker",
    "stop_broker",
]

Say = Callable[[str], None]

# As long as a start may take on a busy machine before its user gives up on it.
_BUSY_TIMEOUT_S: Final = 20.0
_POLL_S: Final = 0.1

NOTHING_THERE = (
    "there is no Kafka broker to use: install Docker, or a JDK of version 17 or newer and Maven, "
    "or name a running broker by LAPSE_KAFKA=host:port"
)


@dataclasses.dataclass(frozen=True, slots=True)
class BrokerHandle:
    """A broker that serves.

    Attributes:
        bootstrap: `host:port`, comma separated where there are several.
        kind: `maven`, `docker` or `given`.
        directory: where Lapse keeps what belongs to it.
        started: whether this handle's maker started it, and so ends it.
    """

    bootstrap: str
    kind: record.BrokerKind
    directory: Path
    started: bool

    def stop(self, *, erase: bool = False) -> None:
        """End the broker if this handle's maker started it, else do nothing. With `erase` its data goes too."""
        if self.started:
            stop_broker(self.directory, erase=erase)


@dataclasses.dataclass(frozen=True, slots=True)
class BrokerStatus:
    """What `lapse broker status` tells. `serving`: how many brokers it knows to be serving; 0 if it does not answer."""

    kind: record.BrokerKind
    bootstrap: str
    pid: int | None
    serving: int


def find_or_start(kafka: str | None, directory: Path, say: Say = lambda _: None) -> BrokerHandle:
    """Return a broker that serves: the named one, or this directory's, started if need be.

    Args:
        kafka: bootstrap servers that the user named, or None.
        directory: Lapse's directory (`.lapse`).
        say: is given a sentence where something takes long.

    Raises:
        RuntimeFault: the named broker does not answer, or there is nothing to start one with.
    """
    if kafka is None:
        return start_broker(directory, say)
    if brokers_serving(kafka) == 0:
        raise RuntimeFault(f"the broker that is named (--kafka, LAPSE_KAFKA) does not answer: {kafka}")
    return BrokerHandle(kafka, "given", directory, started=False)


def start_broker(directory: Path, say: Say = lambda _: None) -> BrokerHandle:
    """Return this directory's broker, started if it does not run yet: by Docker, else by Java and Maven.

    Raises:
        RuntimeFault: there is neither, or it does not come to serve.
    """
    with _alone(directory):
        if (found := record.running(directory)) is not None and _serves_in_time(found):
            return BrokerHandle(found.bootstrap, found.kind, directory, started=False)
        # It hangs, or its machine was switched off: what is left of it goes before another comes.
        _end(found or record.read(directory), directory, erase=False)
        started = _start(directory, say)
        record.write(directory, started)
        return BrokerHandle(started.bootstrap, started.kind, directory, started=True)


def stop_broker(directory: Path, *, erase: bool = False) -> record.BrokerRecord | None:
    """End this directory's broker; with `erase` its data goes too.

    Returns:
        What was ended, or None where nothing ran.
    """
    if not directory.exists():
        return None
    with _alone(directory):
        found = record.running(directory)
        _end(found or record.read(directory), directory, erase=erase)
        return found


def broker_status(directory: Path) -> BrokerStatus | None:
    """Return how this directory's broker is, or None where none was started."""
    found = record.running(directory)
    if found is None:
        return None
    return BrokerStatus(found.kind, found.bootstrap, found.pid, brokers_serving(found.bootstrap))


def _start(directory: Path, say: Say) -> record.BrokerRecord:
    command = docker.engine()
    java = maven.find_java()
    has_java = java is not None and (maven.jars_are_here() or maven.find_maven() is not None)
    if command is not None:
        try:
            return docker.start(directory, command, say)
        except RuntimeFault as fault:
            # An engine that may not pull (no network, no rights) is as good as none where Java is there.
            if not has_java:
                raise
            say(f"Docker cannot run the broker ({fault}); taking Java")
    if java is None or not has_java:
        raise RuntimeFault(NOTHING_THERE)
    return maven.start(directory, java, say)


def _serves_in_time(found: record.BrokerRecord) -> bool:
    """Return whether a broker that runs comes to serve: one that is only busy must not be ended by who asks for it."""
    until = time.monotonic() + _BUSY_TIMEOUT_S
    while brokers_serving(found.bootstrap) == 0:
        if not _runs(found) or time.monotonic() > until:
            return False
        time.sleep(_POLL_S)
    return True


def _runs(found: record.BrokerRecord) -> bool:
    if found.container is not None:
        command = docker.engine()
        return command is not None and docker.container_is_running(command, found.container)
    return found.pid is not None and record.process_is_alive(found.pid, found.started)


def _end(found: record.BrokerRecord | None, directory: Path, *, erase: bool) -> None:
    if found is not None and found.kind == "maven":
        maven.stop(found)
    elif found is not None and found.kind == "docker" and (command := docker.engine()) is not None:
        docker.stop(found, command)
    if erase and (command := docker.engine()) is not None:
        docker.erase(directory, command)  # whichever way it ran last, and though it was stopped before
    record.forget(directory)
    if erase:
        shutil.rmtree(directory / "kafka", ignore_errors=True)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the directory's lock. The kernel lets go of it with the process, so a killed one leaves nothing locked."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "broker.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
