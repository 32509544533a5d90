"""The examples, run as their users run them: a real server in a process of its own, from the example's folder."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2

from lapse.pipeline.settings import Settings
from lapse.schemas import PackedTouches, Revocation, SessionTouched, TopicNames, parse_activity, parse_packed_entry

from tests.consumers.support import Writer, free_port, read_all, writing

__all__ = ["EXAMPLES", "WITHIN_S", "Service", "gunicorn", "serving", "token", "until_up", "uvicorn"]

EXAMPLES = Path(__file__).parents[2] / "examples"

# From the acknowledgement of a revocation to its being refused by every process of a service: some milliseconds.
WITHIN_S = 1.0

SECRET = "only-for-tests"


def gunicorn(app: str, *options: str) -> Callable[[int], list[str]]:
    """Return the command that serves a WSGI application by two forked workers with threads."""
    fixed = ["--workers", "2", "--threads", "8", "--log-level", "warning", "--graceful-timeout", "2", *options]
    return lambda port: [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", *fixed, app]


def uvicorn(*app: str) -> Callable[[int], list[str]]:
    """Return the command that serves an ASGI application; options may stand before it."""
    fixed = ["--log-level", "warning", "--timeout-graceful-shutdown", "2"]
    return lambda port: [sys.executable, "-m", "uvicorn", "--port", str(port), *fixed, *app]


def token(**claims: Any) -> str:
    """Return a JWT as an identity provider makes it, HS256 under SECRET."""
    parts = [{"alg": "HS256", "typ": "JWT"}, {"exp": int(time.time()) + 600, **claims}]
    told = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts)
    signature = hmac.digest(SECRET.encode(), told, hashlib.sha256)
    return (told + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


class Service:
    """A service that runs, and the log around it."""

    def __init__(self, settings: Settings, writer: Writer, port: int) -> None:
        self.settings = settings
        self.writer = writer
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def client(self, **options: Any) -> httpx2.AsyncClient:
        """Return a browser: it keeps cookies, follows nothing, and comes to any process by new connections."""
        limits = httpx2.Limits(max_keepalive_connections=0)
        return httpx2.AsyncClient(base_url=self.url, timeout=20.0, limits=limits, **options)

    async def revoke(self, subject: str) -> None:
        """Revoke a subject's sessions, and return once it is acknowledged."""
        await self.writer.revoke(Revocation(id=f"r-{subject}", subject=subject))

    async def touched(self, *sessions: str) -> set[str]:
        """Wait until these sessions' touches are in the log; return all sessions that were touched by then."""
        topic = TopicNames(self.settings.prefix).activity
        count, found = 1, set[str]()
        async with asyncio.timeout(20):
            while not set(sessions) <= found:
                records = await read_all(self.settings, topic, count)
                count = len(records) + (0 if set(sessions) <= (found := _touched(records)) else 1)
        return found

    async def refused(self, ask: Callable[[], Any], is_refused: Callable[[Any], bool]) -> Any:
        """Ask until the first refusal, which must come in time; twenty more, of whatever process, must be the same."""
        since = time.monotonic()
        while not is_refused(answer := await ask()):
            assert time.monotonic() - since < WITHIN_S, "a revoked session still passes"
        for _ in range(20):
            again = await ask()
            assert is_refused(again) or time.monotonic() - since < WITHIN_S, "a revoked session passes in one process"
        return answer


def _touched(records: list[Any]) -> set[str]:
    found = set()
    for record in records:
        told = parse_activity(record.value)
        if isinstance(told, SessionTouched):
            found.add(told.session)
        elif isinstance(told, PackedTouches):
            found |= {parse_packed_entry(entry, index).session for index, entry in enumerate(told.touches)}
    return found


@contextlib.asynccontextmanager
async def serving(
    settings: Settings, example: str, command: Callable[[int], list[str]], **variables: str
) -> AsyncIterator[Service]:
    """Run an example, and yield it once it answers."""
    port = free_port()
    environment = {
        **os.environ,
        "LAPSE_KAFKA": settings.kafka,
        "LAPSE_PREFIX": settings.prefix,
        "TOKEN_SECRET": SECRET,
        **variables,
    }
    async with writing(settings) as writer:
        process = await asyncio.create_subprocess_exec(*command(port), cwd=EXAMPLES / example, env=environment)
        try:
            await until_up(process, port)
            yield Service(settings, writer, port)
        finally:
            if process.returncode is None:
                process.terminate()
            code = await asyncio.wait_for(process.wait(), 30)
        assert code in (0, -15), f"the example ended with {code}"


async def until_up(process: asyncio.subprocess.Process, port: int) -> None:
    """Return once a server that was started just now takes connections."""
    async with asyncio.timeout(30):
        while True:
            assert process.returncode is None, "the example ended by itself"
            with contextlib.suppress(OSError):
                _, writing_side = await asyncio.open_connection("127.0.0.1", port)
                writing_side.close()
                return
            await asyncio.sleep(0.05)
