"""How does a broker come to run where there is Java and Maven, but no Docker?

1. Maven copies the jars that `infra/kafka/pom.xml` names into the user's cache, once (54 MB).
2. `kafka.tools.StorageTool` formats the data directory, once.
3. `kafka.Kafka` runs as a process of its own session, on loopback, on free ports, which are kept from start to start
   while they are free, so that what was configured with them goes on working.
4. It is up when it answers a request and knows itself to be serving.
5. It ends by SIGTERM to its pid; what does not end by that in time, by SIGKILL.

In `<directory>/kafka`: `server.properties`, `data/`, `broker.log` (the broker's), `broker.out` (the JVM's).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from lapse.pipeline.broker import record
from lapse.pipeline.broker.files import cache_directory, infra
from lapse.pipeline.broker.probe import brokers_serving
from lapse.pipeline.broker.properties import CLUSTER_ID, KAFKA_VERSION, properties
from lapse.schemas.errors import RuntimeFault

__all__ = ["JAVA_VERSION_MIN", "find_java", "find_maven", "jars", "jars_are_here", "start", "stop"]

JAVA_VERSION_MIN: Final = 17

# A broker with nothing to recover answers in 3 s on two idle cores; 60 leave room for a log to recover on busy ones.
START_TIMEOUT_S: Final = 60.0
# A clean stop takes about 1 s. 20 s are far beyond any flush of a small broker, and below anybody's patience.
STOP_TIMEOUT_S: Final = 20.0
# 54 MB in ten seconds from a near mirror; ten minutes allow 100 kB/s.
FETCH_TIMEOUT_S: Final = 600.0
_POLL_S: Final = 0.05

# Serial collector and first compiler only: less memory and a faster start on a machine that does other things too.
_JVM_FLAGS: Final = ("-Xmx400m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true")

Say = Callable[[str], None]

# The brokers that this process started, by pid, kept so that it can ask how they ended. One a directory.
_children: dict[int, subprocess.Popen[bytes]] = {}


def find_java() -> Path | None:
    """Return a `java` of version 17 or newer, from JAVA_HOME or the path; None without one."""
    home = os.environ.get("JAVA_HOME")
    for found in (shutil.which("java", path=str(Path(home, "bin"))) if home else None, shutil.which("java")):
        if found is None:
            continue
        try:
            told = subprocess.run([found, "-version"], capture_output=True, text=True, timeout=30, check=True).stderr
        except (OSError, subprocess.SubprocessError):
            continue
        # 'openjdk version "17.0.15" ...'; Java 8 and older call themselves 1.8.
        version = re.search(r'version "(\d+)', told)
        if version is not None and int(version[1]) >= JAVA_VERSION_MIN:
            return Path(found)
    return None


def find_maven() -> Path | None:
    """Return `mvn`, or None."""
    found = shutil.which("mvn")
    return Path(found) if found else None


def jars_are_here() -> bool:
    """Return whether the jars were fetched already, so that Maven is not needed any more."""
    return _jars_directory().is_dir()


def jars(say: Say) -> Path:
    """Return the directory with the broker's jars, fetched by Maven if they are not there yet.

    The directory is named after the pom's content and appears whole, by a rename, or not at all: an interrupted fetch
    or two at once leave nothing half done.
    """
    pom, target = infra("pom.xml"), _jars_directory()
    if target.is_dir():
        return target
    maven = find_maven()
    if maven is None:
        raise RuntimeFault("the broker's jars are not there: install Maven (mvn) to fetch them, or Docker")
    say(f"fetching Apache Kafka {KAFKA_VERSION} with Maven (54 MB, once)")
    draft = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
    draft.mkdir(parents=True)
    command = [str(maven), "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", "-DincludeScope=runtime"]
    command.append(f"-DoutputDirectory={draft}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)
        if done.returncode != 0:
            raise RuntimeFault(f"Maven could not fetch the broker's jars:\n{_tail(done.stdout + done.stderr)}")
        try:
            draft.rename(target)
        except OSError:
            if not target.is_dir():  # somebody else's fetch of the same jars came first otherwise
                raise
    except subprocess.TimeoutExpired:
        raise RuntimeFault(f"Maven did not fetch the broker's jars in {FETCH_TIMEOUT_S:.0f} s") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def start(
    directory: Path,
    java: Path,
    say: Say,
    *,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> record.BrokerRecord:
    """Start a broker with its data in `<directory>/kafka` note it in the directory, and wait until it serves.

    It is noted before it serves, so that whoever is killed while waiting leaves no broker that nobody can find.

    Args:
        directory: Lapse's, or a test's.
        java: of version 17 or newer.
        say: is given a sentence where something takes long.
        environment: of the broker's process, besides this one's: a test may give it another clock.
        overrides: properties in place of the usual ones.

    Raises:
        RuntimeFault: it ended, or does not serve in time; with the last lines of its log.
    """
    home = (directory / "kafka").resolve()
    data = home / "data"
    home.mkdir(parents=True, exist_ok=True)
    path = f"{jars(say)}/*"
    config = home / "server.properties"
    port, controller_port = _ports(config)
    bootstrap = f"127.0.0.1:{port}"
    values = properties(
        listen=bootstrap, advertised=bootstrap, controller=f"127.0.0.1:{controller_port}", data=str(data)
    )
    values |= overrides or {}
    config.write_text("".join(f"{name}={value}\n" for name, value in values.items()), encoding="utf-8")
    log = home / "broker.log"
    jvm = [
        str(java),
        *_JVM_FLAGS,
        f"-Dlog4j2.configurationFile={infra('log4j2.xml').as_uri()}",
        f"-Dlapse.broker.log={log}",
    ]
    jvm += ["-cp", path]
    if not (data / "meta.properties").exists():
        _format(jvm, config)
    with (home / "broker.out").open("wb") as out:
        # A session of its own: Ctrl-C in the terminal that started it is not meant for the broker.
        process = subprocess.Popen(
            [*jvm, "kafka.Kafka", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    started = record.BrokerRecord("maven", bootstrap, process.pid, record.process_start(process.pid))
    try:
        record.write(directory, started)
        _await_serving(process, bootstrap, [home / "broker.out", log])
    except BaseException:
        process.kill()
        process.wait()
        record.forget(directory)
        raise
    _children[process.pid] = process
    return started


def stop(found: record.BrokerRecord) -> None:
    """End the broker's process and return when it is gone."""
    if found.pid is None:
        return
    for number, patience_s in ((signal.SIGTERM, STOP_TIMEOUT_S), (signal.SIGKILL, STOP_TIMEOUT_S)):
        if not record.process_is_alive(found.pid, found.started):
            break
        with contextlib.suppress(ProcessLookupError):  # it ended by itself just now
            os.kill(found.pid, number)
        until = time.monotonic() + patience_s
        while record.process_is_alive(found.pid, found.started) and time.monotonic() < until:
            time.sleep(_POLL_S)
    else:
        raise RuntimeFault(f"the broker's process {found.pid} does not end")
    if (ours := _children.pop(found.pid, None)) is not None:
        ours.wait()


def _jars_directory() -> Path:
    digest = hashlib.sha256(infra("pom.xml").read_bytes()).hexdigest()[:12]
    return cache_directory() / f"kafka-{KAFKA_VERSION}-{digest}"


def _format(jvm: list[str], config: Path) -> None:
    command = [*jvm, "kafka.tools.StorageTool", "format", "--cluster-id", CLUSTER_ID, "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise RuntimeFault(f"the broker's data directory could not be formatted:\n{_tail(done.stdout + done.stderr)}")


def _await_serving(process: subprocess.Popen[bytes], bootstrap: str, logs: list[Path]) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while brokers_serving(bootstrap, timeout_s=1.0) == 0:
        told = "\n".join(log.read_text(encoding="utf-8", errors="replace") for log in logs if log.exists())
        if process.poll() is not None:
            raise RuntimeFault(f"the broker ended at its start with code {process.returncode}:\n{_tail(told)}")
        if time.monotonic() > until:
            raise RuntimeFault(f"the broker does not serve after {START_TIMEOUT_S:.0f} s:\n{_tail(told)}")
        time.sleep(_POLL_S)


def _ports(config: Path) -> tuple[int, int]:
    """Return the ports of the last start if both are free, else two that are."""
    if config.exists():
        last = re.search(
            r"^listeners=PLAINTEXT://.*?:(\d+),CONTROLLER://.*?:(\d+)$", config.read_text("utf-8"), re.MULTILINE
        )
        if last is not None and _is_free(int(last[1])) and _is_free(int(last[2])):
            return int(last[1]), int(last[2])
    with socket.socket() as first, socket.socket() as second:
        # Both at once, so that they differ. Between here and the broker's own bind somebody else could take one; the
        # broker then ends at its start and says so.
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the broker does: connections of its last life in TIME_WAIT do not make a port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _tail(text: str, lines_max: int = 20) -> str:
    return "\n".join(text.strip().splitlines()[-lines_max:])
