"""Servers that tests start for themselves, on ports of loopback, with data of their own: Redis, PostgreSQL.

A machine without the server's program skips what needs it, with one sentence that says what to install.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

__all__ = ["postgres", "redis"]

_START_TIMEOUT_S: Final = 60.0
_POSTGRES_PROGRAMS: Final = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


@contextlib.contextmanager
def redis(directory: Path) -> Iterator[str]:
    """Give the URL of a Redis that keeps nothing."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    port = _free_port()
    process = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)],
        stdout=subprocess.DEVNULL,
    )
    try:
        _wait_for(port, process)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def postgres(directory: Path) -> Iterator[str]:
    """Give the URL of an empty database of a PostgreSQL that keeps nothing; it does not run as root."""
    if not _POSTGRES_PROGRAMS:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    programs = _POSTGRES_PROGRAMS[0]
    data = directory / "postgres"
    data.mkdir()
    as_user: list[str] = []
    if os.geteuid() == 0:
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        shutil.chown(data, "postgres", "postgres")
        for parent in data.parents[:-2]:
            parent.chmod(parent.stat().st_mode | 0o011)
    port = _free_port()
    make = [*as_user, str(programs / "initdb"), "-D", str(data), "-U", "lapse", "--auth=trust", "--no-sync"]
    subprocess.run(make, check=True, capture_output=True, timeout=_START_TIMEOUT_S)
    options = ["-c", "fsync=off", "-c", f"unix_socket_directories={data}", "-c", "listen_addresses=127.0.0.1"]
    process = subprocess.Popen(
        [*as_user, str(programs / "postgres"), "-D", str(data), "-p", str(port), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(port, process)
        _wait_until_it_answers(programs, port)
        yield f"postgresql://lapse@127.0.0.1:{port}/postgres"
    finally:
        process.terminate()
        process.wait(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_TIMEOUT_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert process.poll() is None, f"the server ended by itself: {process.returncode}"
        assert time.monotonic() < until, "the server does not listen"
        time.sleep(0.02)


def _wait_until_it_answers(programs: Path, port: int) -> None:
    ready = [str(programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-q"]
    until = time.monotonic() + _START_TIMEOUT_S
    while subprocess.run(ready, check=False, timeout=30).returncode:
        assert time.monotonic() < until, "the server does not answer"
        time.sleep(0.02)
