"""How does one of the demo's services run? `python -m lapse.pipeline.demo.service_process`, told by its standard input.

1. The first line of standard input is its task, as JSON: what is secret in it is in no argument and no environment.
2. It binds a free port of loopback, starts, and prints one line, `{"port": 41234}`, when it serves.
3. It ends by SIGTERM, or when its standard input ends: a demo that was killed leaves no service behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import sys
from pathlib import Path
from typing import Final

import orjson
import uvicorn

from lapse.pipeline.demo.account import Account
from lapse.pipeline.demo.services import ServiceTask, build_app

__all__ = ["main"]

_BACKLOG: Final = 512  # connections that may wait to be taken: all people may come back at one instant
# Longer than anybody pauses: a connection that the server closes just as a request is sent costs that request.
_KEEP_ALIVE_S: Final = 60
_LEAVE_S: Final = 2


def main() -> None:
    """Run the service that standard input describes."""
    task = ServiceTask(**orjson.loads(sys.stdin.buffer.readline()))
    with Account(Path(task.account)) as account:
        asyncio.run(_serve(task, account))


class _TellingServer(uvicorn.Server):
    """Says where it serves, once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What was imported stays: looking through it again and again would hold the loop for tens of milliseconds, in
        # which nothing is refused (measured: 60,000 objects, 70 ms a full collection; none of it after this).
        gc.collect()
        gc.freeze()
        if self.started and sockets:
            sys.stdout.write(orjson.dumps({"port": sockets[0].getsockname()[1]}).decode() + "\n")
            sys.stdout.flush()


async def _serve(task: ServiceTask, account: Account) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
    config = uvicorn.Config(
        build_app(task, account),
        log_level="warning",
        access_log=False,
        lifespan="on",
        ws="websockets-sansio",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_LEAVE_S,
    )
    server = _TellingServer(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    watching = asyncio.create_task(_until_abandoned())
    await asyncio.wait([serving, watching], return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await serving
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def _until_abandoned() -> None:
    """Return when standard input ends, which it does with the demo's process."""
    reader = asyncio.StreamReader()
    with contextlib.closing(
        (await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin))[0]
    ):
        await reader.read()


if __name__ == "__main__":
    main()
