"""Is a real FastAPI service under a real uvicorn guarded, over a real broker?

The service runs in a process of its own (tests/consumers/services.py); requests come over HTTP and WebSocket, endings
and revocations are written to the topics raw.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
import websockets

from lapse.consumers import Cause, session_reference
from lapse.pipeline.settings import Settings
from lapse.schemas import Revocation, SessionStarted, SessionTouched, TopicNames, parse_activity

from tests.consumers.support import Writer, free_port, read_all, writing

ROOT = Path(__file__).parents[2]


@contextlib.asynccontextmanager
async def _serving(settings: Settings) -> AsyncIterator[tuple[Writer, httpx2.AsyncClient, int]]:
    """Run the service, and yield a writer, a client, and the port, once it is up."""
    port = free_port()
    async with writing(settings) as writer:
        command = (sys.executable, "-m", "tests.consumers.services", settings.kafka, settings.prefix, str(port))
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
        try:
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10.0) as client:
                await _until_up(client)
                yield writer, client, port
        finally:
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 20) in (0, -15)


async def _until_up(client: httpx2.AsyncClient) -> None:
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(httpx2.TransportError):
                if (await client.get("/health")).status_code == 200:
                    return
            await asyncio.sleep(0.05)


def _of(session: str, subject: str = "u-1") -> dict[str, str]:
    return {"x-session": session, "x-subject": subject}


async def test_requests_pass_until_the_session_ends_and_touches_are_told(settings: Settings) -> None:
    async with _serving(settings) as (writer, client, _):
        assert (await client.get("/me")).status_code == 401  # no session at all: the dependency refuses
        assert (await client.get("/me", headers=_of("one"))).json() == "u-1"
        assert (await client.post("/login", headers=_of("two", "u-2"))).status_code == 200
        await writer.end(session_reference("one"), "u-1")
        async with asyncio.timeout(10):
            while (refused := await client.get("/me", headers=_of("one"))).status_code == 200:
                pass
        assert refused.status_code == 401
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["cause"] == "idle"
        records = await read_all(settings, TopicNames(settings.prefix).activity, 3)
    activities = [parse_activity(record.value) for record in records]
    touched = {activity.session for activity in activities if isinstance(activity, SessionTouched)}
    started = {activity.session for activity in activities if isinstance(activity, SessionStarted)}
    assert touched == {session_reference("one"), session_reference("two")}
    assert started == {session_reference("two")}
    assert b"one" not in b"".join(record.value for record in records)


async def test_an_open_websocket_is_closed_with_4001_and_a_new_one_is_refused(settings: Settings) -> None:
    async with _serving(settings) as (writer, _, port):
        url = f"ws://127.0.0.1:{port}/ws"
        async with websockets.connect(url, additional_headers=_of("one")) as socket:
            await socket.send("hello")
            assert await socket.recv() == "u-1: hello"
            await writer.revoke(Revocation(id="r-1", session=session_reference("one"), subject="u-1"))
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await asyncio.wait_for(socket.recv(), 10)
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "session ended: revoked")
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(url, additional_headers=_of("one"))
        assert refused.value.response.status_code == 401


async def test_a_streaming_response_ends_when_the_session_ends(settings: Settings) -> None:
    async with (
        _serving(settings) as (writer, client, _),
        client.stream("GET", "/stream", headers=_of("one")) as response,
    ):
        parts = response.aiter_bytes()
        assert b"tick" in await anext(parts)
        await writer.end(session_reference("one"), "u-1", cause=Cause.ABSOLUTE)
        async with asyncio.timeout(10):
            async for _ in parts:
                pass
        assert (await client.get("/me", headers=_of("one"))).json()["cause"] == "absolute"
