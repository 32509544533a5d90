"""A service behind a proxy that asks a sidecar: all of it real, each a process, on a broker.

Processor and operator are played by a writer of the topics (tests/consumers/support.py), so that a test says when what
is revoked, and when watermarks stop.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from joserfc.jwk import ECKey

from lapse.pipeline.settings import Settings
from lapse.schemas import SessionTouched, TopicNames, parse_activity, session_reference

from tests.cli.running import flags_of, program
from tests.consumers.sidecar.support import claims, key_set_file, signed
from tests.consumers.support import Writer, free_port, read_all, writing
from tests.proxies.running import Ports, Proxy, listening, process

__all__ = ["Login", "Stage", "staged"]

ROOT = Path(__file__).parents[2]
KEY = ECKey.generate_key("P-256", {"kid": "one"})


@dataclass(frozen=True, slots=True)
class Login:
    """Someone with a token; `headers` carry it."""

    session_id: str
    token: str

    @property
    def reference(self) -> str:
        return session_reference(self.session_id)

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}

    @property
    def cookie(self) -> dict[str, str]:
        return {"cookie": f"theme=dark; token={self.token}"}


def login(**said: Any) -> Login:
    session_id = f"secret-{secrets.token_hex(8)}"
    return Login(session_id, signed(KEY, claims(sid=session_id, **said)))


class Stage:
    """What a test acts on."""

    def __init__(self, directory: Path, settings: Settings, ports: Ports, writer: Writer, told: Sequence[str]) -> None:
        self.settings = settings
        self.ports = ports
        self.writer = writer
        self.directory = directory
        self.client = httpx2.AsyncClient(base_url=f"http://127.0.0.1:{ports.proxy}", timeout=10.0)
        self._told = told

    async def touched(self, count: int) -> list[SessionTouched]:
        """Return the touches in the log, once there are so many."""
        records = await read_all(self.settings, TopicNames(self.settings.prefix).activity, count)
        activities = [parse_activity(record.value) for record in records]
        return [activity for activity in activities if isinstance(activity, SessionTouched)]

    @contextlib.asynccontextmanager
    async def sidecar(self) -> AsyncIterator[None]:
        """Run `lapse sidecar`, and yield when it answers."""
        command = program(
            "sidecar", "--port", str(self.ports.sidecar), "--service", "edge", "--jwks", str(self.directory / "jwks"),
            "--token-cookie", "token", "--stale-routes", "/pay=deny", *self._told, *flags_of(self.settings),
        )  # fmt: skip
        async with process(command, self.directory) as started:
            await listening(self.ports.sidecar, started)
            url = f"http://127.0.0.1:{self.ports.sidecar}/healthz"
            async with httpx2.AsyncClient(timeout=30.0) as client:  # it answers once the guard has read its topics
                assert (await client.get(url)).status_code == 200
            yield
            started.terminate()
            assert await started.wait() == 0


@contextlib.asynccontextmanager
async def staged(
    proxy: Proxy, directory: Path, settings: Settings, *told: str, opened: bool = False, down: bool = False
) -> AsyncIterator[Stage]:
    """Run service, sidecar and proxy.

    Args:
        told: further flags of the sidecar.
        opened: whether the proxy lets pass what it cannot ask about.
        down: whether the sidecar is left out.
    """
    proxy.found()
    ports = Ports(free_port(), free_port(), free_port())
    key_set_file(directory / "jwks", KEY)
    service = [sys.executable, "-m", "tests.proxies.upstream", str(ports.service)]
    async with contextlib.AsyncExitStack() as stack:
        writer = await stack.enter_async_context(writing(settings))
        stage = Stage(directory, settings, ports, writer, told)
        started = await stack.enter_async_context(process(service, directory, {"PYTHONPATH": str(ROOT)}))
        await listening(ports.service, started)
        if not down:
            await stack.enter_async_context(stage.sidecar())
        await stack.enter_async_context(proxy.serving(directory / proxy.name, ports, opened=opened))
        await stack.enter_async_context(stage.client)
        yield stage
