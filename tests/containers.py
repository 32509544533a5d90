"""`apache/kafka` under testcontainers.

Its own `KafkaContainer` starts Confluent's images and refuses this one. The difference that matters: the port under
which clients reach the broker is known only once the container runs, and the broker must be told before it starts. So
the container waits for a file with its advertised listener, and only then runs what the image runs.
"""

from __future__ import annotations

import io
import tarfile
import time
from typing import Final, Self

from testcontainers.core.container import DockerContainer

from lapse.pipeline.broker.probe import brokers_serving
from lapse.pipeline.broker.properties import CONTAINER_PORT, IMAGE, container_environment

__all__ = ["ApacheKafkaContainer"]

_TOLD: Final = "/tmp/advertised"  # noqa: S108 - inside the container, which has one user
_START_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.1


class ApacheKafkaContainer(DockerContainer):
    """One broker of `apache/kafka`, on a port of the engine's choice.

    `with ApacheKafkaContainer() as kafka: kafka.bootstrap()`
    """

    def __init__(self, image: str = IMAGE) -> None:
        super().__init__(image)
        self.with_exposed_ports(CONTAINER_PORT)
        environment = container_environment("advertised")
        environment.pop("KAFKA_ADVERTISED_LISTENERS")
        self.with_envs(**environment)
        # The image's own command, after the wait.
        wait = f"while [ ! -s {_TOLD} ]; do sleep 0.05; done; . {_TOLD}; exec /etc/kafka/docker/run"
        self.with_command(["bash", "-c", wait])

    def bootstrap(self) -> str:
        """Return `host:port` for clients on this machine."""
        host = self.get_container_host_ip()
        # "localhost" may be ::1 first, where the engine publishes on IPv4 alone.
        return f"{'127.0.0.1' if host == 'localhost' else host}:{self.get_exposed_port(CONTAINER_PORT)}"

    def start(self) -> Self:
        super().start()
        try:
            advertised = container_environment(self.bootstrap())["KAFKA_ADVERTISED_LISTENERS"]
            self._put(f"export KAFKA_ADVERTISED_LISTENERS='{advertised}'\n".encode())
            until = time.monotonic() + _START_TIMEOUT_S
            while brokers_serving(self.bootstrap(), timeout_s=1.0) == 0:
                if time.monotonic() > until:
                    out, err = self.get_logs()
                    raise TimeoutError(f"the container does not serve:\n{(out + err).decode(errors='replace')[-4000:]}")
                time.sleep(_POLL_S)
        except BaseException:
            self.stop()
            raise
        return self

    def _put(self, content: bytes) -> None:
        with io.BytesIO() as buffer:
            with tarfile.TarFile(fileobj=buffer, mode="w") as archive:
                entry = tarfile.TarInfo(_TOLD.removeprefix("/"))
                entry.size = len(content)
                entry.mode = 0o644
                archive.addfile(entry, io.BytesIO(content))
            self.get_wrapped_container().put_archive("/", buffer.getvalue())
