"""How is a Kafka client let go of, whatever its broker does?"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiokafka.errors import KafkaError

__all__ = ["abandon"]

# stop() is known to hang when brokers are gone (aiokafka 659): what does not stop by then is left to the process's end.
_STOP_DEADLINE_S: Final = 5.0


async def abandon(client: Any) -> None:
    """Stop an aiokafka client, or leave it if it does not stop in time."""
    try:
        async with asyncio.timeout(_STOP_DEADLINE_S):
            await client.stop()
    except (TimeoutError, KafkaError):
        pass
