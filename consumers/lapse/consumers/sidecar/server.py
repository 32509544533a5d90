"""How does the sidecar run as a process? uvicorn on one address, until it is told to stop (Ctrl-C, SIGTERM).

It listens before the guard has read its topics, and answers afterwards: for these moments a proxy's questions wait.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from typing import Final

import uvicorn

from lapse.consumers.sidecar.app import Sidecar, build_app
from lapse.consumers.sidecar.config import SidecarConfig
from lapse.schemas import ConfigError, RuntimeFault

__all__ = ["made", "serve"]

_BACKLOG: Final = 1024
# Longer than proxies keep an idle connection (nginx 60 s, Traefik 90 s, Caddy 120 s): who closes first breaks the
# question that is on its way, and a broken question is a refusal.
_KEEP_ALIVE_S: Final = 150
_LEAVE_S: Final = 3


def serve(config: SidecarConfig, ready: Callable[[str], None]) -> None:
    """Run until told to stop.

    Args:
        config: what it is told.
        ready: called with the address once questions are answered.

    Raises:
        ConfigError: what it is told is refused, or the address cannot be listened on.
        RuntimeFault: it could not start.
    """
    sidecar = Sidecar(config)
    try:
        family = socket.AF_INET6 if ":" in config.address else socket.AF_INET
        listener = socket.create_server((config.address, config.port), family=family, backlog=_BACKLOG)
    except OSError as refused:
        raise ConfigError(
            f"{config.address}:{config.port} cannot be listened on ({refused.strerror}): name another address or port"
        ) from None
    # uvicorn raises the signal again once it has stopped; to have stopped is what was asked for.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    with listener:
        asyncio.run(_serve(sidecar, listener, ready))


class _Telling(uvicorn.Server):
    """Says when it serves."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


def made(sidecar: Sidecar, ready: Callable[[], None]) -> uvicorn.Server:
    """Return the server of a sidecar; `ready` is called once it answers."""
    config = uvicorn.Config(
        build_app(sidecar),
        log_config=None,
        log_level="warning",
        access_log=False,  # a line would hold the path, and Envoy's has the query
        proxy_headers=False,
        server_header=False,
        lifespan="on",
        http="httptools",  # measured: twice as many questions a second as with h11
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_LEAVE_S,
    )
    logging.getLogger("uvicorn.error").addFilter(_quiet)
    return _Telling(config, ready)


async def _serve(sidecar: Sidecar, listener: socket.socket, ready: Callable[[str], None]) -> None:
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    server = made(sidecar, lambda: ready(address))
    await server.serve(sockets=[listener])
    if not server.started:
        raise RuntimeFault("the sidecar could not start: the lines above say why")


def _quiet(record: logging.LogRecord) -> bool:
    """Leave out what uvicorn warns of at each question about a WebSocket: it is answered like any other."""
    text = record.getMessage()
    return not text.startswith(("Unsupported upgrade request", "No supported WebSocket library"))
