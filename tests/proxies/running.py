"""Each proxy as a process, with the configuration that docs/sidecar.md shows: only addresses are put in.

Everything listens on free ports of loopback, is ended by its process id, and keeps its files in a test's directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

__all__ = ["PROXIES", "Ports", "Proxy", "listening", "process"]

CONFIGURATIONS = Path(__file__).parents[2] / "infra" / "proxies"
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Ports:
    """Where proxy, sidecar and service listen."""

    proxy: int
    sidecar: int
    service: int


@dataclass(frozen=True, slots=True)
class Proxy:
    """One kind of proxy.

    Attributes:
        when_down: what it answers while the sidecar does not.
        open_up: (text, replacement) that lets everything pass then; None where the proxy has no such way.
    """

    name: str
    binary: str
    arguments: Sequence[str]
    when_down: int
    open_up: tuple[str, str] | None = None

    def found(self) -> str:
        """Return the program; skip where it is the system's and not installed."""
        beside = Path(sys.executable).parent / self.binary
        if beside.exists():
            return str(beside)
        program = shutil.which(self.binary, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
        if program is not None:
            return program
        if self.name == "nginx":
            pytest.skip("nginx is not installed, and no wheel has it: apt-get install nginx-light")
        pytest.fail(
            f"{self.binary} is not installed: make test-proxies, or pip install 'lapse[proxies]'", pytrace=False
        )

    def write(self, directory: Path, ports: Ports, *, opened: bool = False) -> None:
        """Write its configuration with these ports into the directory."""
        for source in (CONFIGURATIONS / self.name).iterdir():
            text = source.read_text(encoding="utf-8")
            for shown, put in ((8080, ports.proxy), (8470, ports.sidecar), (8000, ports.service)):
                text = text.replace(f":{shown}", f":{put}").replace(f"port_value: {shown}", f"port_value: {put}")
            if opened and self.open_up is not None:
                assert self.open_up[0] in text
                text = text.replace(*self.open_up)
            (directory / source.name).write_text(text, encoding="utf-8")

    @contextlib.asynccontextmanager
    async def serving(self, directory: Path, ports: Ports, *, opened: bool = False) -> AsyncIterator[None]:
        """Run it."""
        program = self.found()
        directory.mkdir()
        self.write(directory, ports, opened=opened)
        arguments = [argument.replace("{directory}", str(directory)) for argument in self.arguments]
        if self.name == "nginx" and os.geteuid() == 0:
            arguments += [
                "-g",
                "user root;",
            ]  # its workers would be another user's, who may not enter a test's directory
        home = {"HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
        async with process([program, *arguments], directory, home) as started:
            await listening(ports.proxy, started)
            await _routing(ports.proxy)
            yield


PROXIES = {
    proxy.name: proxy
    for proxy in (
        Proxy(
            "nginx",
            "nginx",
            ["-e", "stderr", "-p", "{directory}", "-c", "{directory}/nginx.conf"],
            when_down=500,
            open_up=("# error_page 500 502 504", "error_page 500 502 504"),
        ),
        Proxy("traefik", "traefik", ["--configFile={directory}/traefik.yml"], when_down=500),
        Proxy("caddy", "caddy", ["run", "--config", "{directory}/Caddyfile"], when_down=502),
        Proxy(
            "envoy",
            "envoy",
            ["-c", "{directory}/envoy.yaml", "--concurrency", "1", "--disable-hot-restart", "-l", "error"],
            when_down=503,
            open_up=("failure_mode_allow: false", "failure_mode_allow: true"),
        ),
    )
}


@contextlib.asynccontextmanager
async def process(
    command: Sequence[str], directory: Path, variables: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program in the directory, its output to a file there; it is ended for certain."""
    path = directory / f"{Path(command[0]).name}.log"
    with path.open("ab") as log:
        started = await asyncio.create_subprocess_exec(
            *command, cwd=directory, env={**os.environ, **(variables or {})}, stdout=log, stderr=log
        )
    try:
        yield started
    except BaseException:
        sys.stderr.write(f"--- {path.name}\n{path.read_text(errors='replace')[-4_000:]}\n")
        raise
    finally:
        if started.returncode is None:
            started.terminate()
        try:
            await asyncio.wait_for(started.wait(), 20)
        except TimeoutError:
            started.kill()
            await started.wait()


async def listening(port: int, started: asyncio.subprocess.Process) -> None:
    """Return when the process listens."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            assert started.returncode is None, f"it ended by itself: {started.returncode}"
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                await writer.wait_closed()
                return
            await asyncio.sleep(0.02)


async def _routing(port: int) -> None:
    """Return when the proxy knows its routes: Traefik listens before, and answers 404."""
    async with asyncio.timeout(PATIENCE_S), httpx2.AsyncClient(timeout=10.0) as client:
        while (await client.get(f"http://127.0.0.1:{port}/")).status_code == 404:  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.02)
