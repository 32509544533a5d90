"""How are Kafka clients told of their brokers, and let go of, whatever the brokers do?"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from aiokafka.errors import KafkaError

__all__ = ["abandon", "servers"]

# stop() is known to hang when brokers are gone (aiokafka 659): what does not stop by then has its connections closed.
_STOP_DEADLINE_S: Final = 5.0
_CLOSE_DEADLINE_S: Final = 1.0


def servers(bootstrap: str) -> list[str]:
    """Return the servers, host:port, of a comma separated list."""
    return [server.strip() for server in bootstrap.split(",")]


async def abandon(client: Any) -> None:
    """Stop an aiokafka client; if it does not stop in time, close its connections and leave it."""
    try:
        async with asyncio.timeout(_STOP_DEADLINE_S):
            await client.stop()
    except (TimeoutError, KafkaError):
        # A producer shows its connections' keeper as `client`, the others as `_client`.
        keeper: Any = getattr(client, "client", None) or getattr(client, "_client", None)
        with contextlib.suppress(TimeoutError, KafkaError, AttributeError):
            async with asyncio.timeout(_CLOSE_DEADLINE_S):
                await keeper.close()
