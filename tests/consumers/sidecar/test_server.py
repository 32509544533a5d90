"""Does the server answer however it is asked? A real uvicorn on loopback, as `lapse sidecar` runs it, and raw sockets.

The sidecar inside has its feed in memory.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Sequence

import pytest

from lapse.consumers import ConfigError, session_reference
from lapse.consumers.sidecar.server import made, serve

from tests.consumers.sidecar.support import Asking, config

COOKIE = b"Cookie: sid=the-cookie\r\n"


class _Wire:
    """One connection, as a proxy keeps it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, text: bytes) -> None:
        self._writer.write(text)
        await self._writer.drain()

    async def answer(self, *, body: bool = True) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(5):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            length = int(headers.get("content-length", 0)) if body else 0
            return int(head[0].split(" ")[1]), headers, await self._reader.readexactly(length)

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


@contextlib.asynccontextmanager
async def _serving(asking: Asking) -> AsyncIterator[_Wire]:
    listening = asyncio.Event()
    server = made(asking.sidecar, listening.set)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await asyncio.wait_for(listening.wait(), 10)
            wire = _Wire(*await asyncio.open_connection(*listener.getsockname()))
            yield wire
            await wire.close()
        finally:
            server.should_exit = True
            await serving


def _question(first: bytes, *headers: bytes) -> bytes:
    return first + b" HTTP/1.1\r\nHost: sidecar\r\n" + COOKIE + b"".join(line + b"\r\n" for line in headers) + b"\r\n"


UPGRADE: Sequence[bytes] = (
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"Sec-WebSocket-Version: 13",
)


@pytest.mark.parametrize("method", [b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"PROPFIND"])
@pytest.mark.parametrize("path", [b"/check", b"/check/", b"/check/a%0Ab?token=x", b"/check/metrics"])
async def test_every_method_and_path_is_a_question(method: bytes, path: bytes) -> None:
    asking = Asking()
    async with _serving(asking) as wire:
        await wire.send(_question(method + b" " + path))
        status, headers, _ = await wire.answer()
        assert (status, headers["x-lapse-session"]) == (200, session_reference("the-cookie"))
        asking.feed.end(session_reference("the-cookie"))
        await wire.send(_question(method + b" " + path))
        status, headers, body = await wire.answer()
        assert (status, headers["x-lapse-cause"]) == (401, "idle")
        assert b'"cause":"idle"' in body


async def test_a_head_gets_the_status_and_no_body() -> None:
    asking = Asking()
    asking.feed.end(session_reference("the-cookie"))
    async with _serving(asking) as wire:
        for _ in range(2):  # a body would be read as the second answer
            await wire.send(_question(b"HEAD /check/x"))
            assert (await wire.answer(body=False))[0] == 401


async def test_a_question_about_a_websocket_is_a_plain_one_and_makes_no_noise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asking = Asking()
    with caplog.at_level(logging.INFO):
        async with _serving(asking) as wire:
            for _ in range(2):
                await wire.send(_question(b"GET /check", *UPGRADE))
                assert (await wire.answer())[0] == 200
            asking.feed.end(session_reference("the-cookie"))
            await wire.send(_question(b"GET /check", *UPGRADE))
            assert (await wire.answer())[0] == 401
    assert not caplog.records


async def test_a_body_that_comes_along_is_not_waited_for() -> None:
    async with _serving(Asking()) as wire:
        await wire.send(_question(b"POST /check", b"Content-Length: 4"))  # announced, and never sent
        assert (await wire.answer())[0] == 200


async def test_a_body_that_is_sent_does_not_become_the_next_question() -> None:
    async with _serving(Asking()) as wire:
        await wire.send(_question(b"POST /check", b"Content-Length: 5") + b"a=b&c")
        assert (await wire.answer())[0] == 200
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):  # or the connection is closed
            await wire.send(_question(b"GET /healthz"))
            assert (await wire.answer())[2] == b'{"status":"ok"}'


async def test_long_cookies_are_taken() -> None:
    async with _serving(Asking()) as wire:
        await wire.send(_question(b"GET /check", b"X-Other: " + b"x" * 32_000))
        assert (await wire.answer())[0] == 200


async def test_health_readiness_and_metrics() -> None:
    asking = Asking(config(service="edge"))
    async with _serving(asking) as wire:
        await wire.send(_question(b"GET /readyz"))
        assert (await wire.answer())[0] == 200
        asking.feed.processor_runs = False
        asking.feed.advance(10_000)
        await wire.send(_question(b"GET /readyz"))
        status, _, body = await wire.answer()
        assert status == 503
        assert b"processor" in body
        await wire.send(_question(b"GET /healthz"))
        assert (await wire.answer())[0] == 200
        await wire.send(_question(b"GET /metrics"))
        assert b"lapse_guard_fresh 0.0" in (await wire.answer())[2]
        await wire.send(_question(b"GET /checkers"))
        assert (await wire.answer())[0] == 404


def test_an_address_that_is_taken_is_refused_at_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="cannot be listened on"):
        serve(config(port=taken.getsockname()[1]), lambda _: None)
