"""A guard in a process of its own: `python -m tests.integration._guarding KAFKA PREFIX SERVICE INSTANCE`.

It prints a line when it is fresh, and ends when its standard input does.
"""

import asyncio
import sys

from lapse.consumers import Guard

__all__: list[str] = []


async def _run(kafka: str, prefix: str, service: str, instance: str) -> None:
    async with Guard(kafka, prefix=prefix, service=service, instance=instance, ready_timeout_s=30) as guard:
        print("fresh" if guard.fresh else f"stale: {guard.why_stale}", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_run(*sys.argv[1:5]))
