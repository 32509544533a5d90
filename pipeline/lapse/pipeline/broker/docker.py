"""How does a broker come to run where there is a Docker engine?

By `infra/kafka/compose.yaml` where the compose plugin is there, and by the same container made with `docker run` where
it is not (Debian's `docker.io` comes without). The container is named after the directory it belongs to, so that two
checkouts have two brokers; it publishes one free port of loopback; its data is in a volume of the same name.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from lapse.pipeline.broker import record
from lapse.pipeline.broker.files import infra
from lapse.pipeline.broker.probe import brokers_serving
from lapse.pipeline.broker.properties import CONTAINER_DATA, CONTAINER_PORT, IMAGE, container_environment
from lapse.schemas.errors import RuntimeFault

__all__ = ["container_is_running", "engine", "erase", "start", "stop"]

Say = Callable[[str], None]

# A pull of the image is about 400 MB on the first day.
_PULL_TIMEOUT_S: Final = 1200.0
_COMMAND_TIMEOUT_S: Final = 60.0
_START_TIMEOUT_S: Final = 60.0
# An engine that is there answers in some 50 ms; one that is being asked over a dead tunnel must not hold up a command.
_ENGINE_TIMEOUT_S: Final = 5.0
_POLL_S: Final = 0.1


def engine() -> Path | None:
    """Return the `docker` command if an engine answers it, else None."""
    found = shutil.which("docker")
    if found is None:
        return None
    try:
        asked = subprocess.run(
            [found, "version", "--format", "{{.Server.Version}}"],
            capture_output=True,
            timeout=_ENGINE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return Path(found) if asked.returncode == 0 else None


def start(directory: Path, docker: Path, say: Say) -> record.BrokerRecord:
    """Start the broker's container and wait until it serves.

    Raises:
        RuntimeFault: the image cannot be had, or the broker does not serve in time.
    """
    name = _name(directory)
    _have_image(docker, say)
    port = _free_port()
    if _has_compose(docker):
        variables = {"LAPSE_BROKER_PORT": str(port), "LAPSE_BROKER_NAME": name, "COMPOSE_PROJECT_NAME": name}
        _run(docker, "compose", "-f", str(infra("compose.yaml")), "up", "-d", environment=variables)
    else:
        _run(docker, "rm", "-f", name, accept_failure=True)
        _run(docker, *_run_arguments(name, port))
    found = record.BrokerRecord("docker", f"127.0.0.1:{port}", container=name)
    until = time.monotonic() + _START_TIMEOUT_S
    while brokers_serving(found.bootstrap, timeout_s=1.0) == 0:
        if time.monotonic() > until or not container_is_running(docker, name):
            told = _run(docker, "logs", "--tail", "20", name, accept_failure=True)
            stop(found, docker)
            raise RuntimeFault(f"the broker's container does not serve:\n{told}")
        time.sleep(_POLL_S)
    return found


def stop(found: record.BrokerRecord, docker: Path) -> None:
    """Stop and remove the container; its volume stays."""
    if found.container is None:
        return
    _run(docker, "stop", "--time", "20", found.container, accept_failure=True)
    _run(docker, "rm", "-f", found.container, accept_failure=True)
    _run(docker, "network", "rm", f"{found.container}_default", accept_failure=True)  # compose makes one


def erase(directory: Path, docker: Path) -> None:
    """Remove the volume of this directory's broker, if there is one; its container is gone."""
    _run(docker, "volume", "rm", "-f", _name(directory), accept_failure=True)


def container_is_running(docker: Path, name: str) -> bool:
    """Return whether the engine runs a container of that name."""
    return _run(docker, "inspect", "--format", "{{.State.Running}}", name, accept_failure=True).strip() == "true"


def _run_arguments(name: str, port: int) -> list[str]:
    environment = container_environment(f"127.0.0.1:{port}")
    variables = [argument for pair in environment.items() for argument in ("--env", "=".join(pair))]
    published = ["--publish", f"127.0.0.1:{port}:{CONTAINER_PORT}", "--volume", f"{name}:{CONTAINER_DATA}"]
    return ["run", "--detach", "--name", name, *published, *variables, IMAGE]


def _have_image(docker: Path, say: Say) -> None:
    if _run(docker, "image", "inspect", "--format", "{{.Id}}", IMAGE, accept_failure=True).strip():
        return
    say(f"pulling {IMAGE} (once)")
    _run(docker, "pull", "--quiet", IMAGE, timeout_s=_PULL_TIMEOUT_S)


def _has_compose(docker: Path) -> bool:
    return bool(_run(docker, "compose", "version", "--short", accept_failure=True).strip())


def _run(
    docker: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = _COMMAND_TIMEOUT_S,
    accept_failure: bool = False,
) -> str:
    """Return what a docker command printed; with `accept_failure` an empty text where it failed."""
    try:
        done = subprocess.run(
            [docker, *arguments],
            env=os.environ | (environment or {}),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeFault(f"docker {arguments[0]} did not end in {timeout_s:.0f} s") from None
    if done.returncode == 0:
        return done.stdout or done.stderr  # `logs` repeats the container's two streams
    if accept_failure:
        return ""
    raise RuntimeFault(f"docker {arguments[0]} failed: {done.stderr.strip()}")


def _name(directory: Path) -> str:
    return "lapse-kafka-" + hashlib.sha256(bytes(directory.resolve())).hexdigest()[:10]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
