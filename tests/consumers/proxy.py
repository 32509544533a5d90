"""A TCP proxy before a broker, which can be cut in one direction: connections stay, nothing comes through any more."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

__all__ = ["Proxy", "proxying"]


class Proxy:
    """Passes bytes between clients and a broker.

    Attributes:
        answers: whether what the broker sends reaches the clients.
        requests: whether what clients send reaches the broker.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self.answers = True
        self.requests = True
        self.port = 0

    def heal(self) -> None:
        """Pass everything again, what was kept back too."""
        self.answers = self.requests = True
        self._changed.set()
        self._changed = asyncio.Event()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            broker_reader, broker_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.close()
            return
        ways = (
            asyncio.create_task(self._pass(reader, broker_writer, "requests")),
            asyncio.create_task(self._pass(broker_reader, writer, "answers")),
        )
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.close()
            broker_writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                while not getattr(self, way):
                    await self._changed.wait()
                writer.write(data)
                await writer.drain()

    async def close(self) -> None:
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def proxying(target_port: int, port: int) -> AsyncIterator[Proxy]:
    """Listen on a port in the place of the broker that listens on another."""
    proxy = Proxy(target_port)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", port)
    proxy.port = port
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
        await server.wait_closed()
