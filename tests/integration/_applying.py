"""An applier that is killed between effect and commit: `python -m tests.integration._applying KAFKA PREFIX REDIS`.

It ends by kill -9 as soon as the first batch has had its effect, as a machine does that loses its power.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence

from lapse.consumers.appliers import Applier, Ending, IndexedEffect, Rejected
from lapse.consumers.appliers.redis import LAYOUTS, RedisStore

__all__: list[str] = []


class _Killed(IndexedEffect):
    async def apply(self, endings: Sequence[Ending]) -> Sequence[Rejected]:
        await super().apply(endings)
        os.kill(os.getpid(), signal.SIGKILL)
        return ()


if __name__ == "__main__":
    kafka, prefix, url = sys.argv[1:4]
    effect = _Killed(RedisStore(url, LAYOUTS["connect"]))
    asyncio.run(Applier(kafka, effect, name="apply-redis", prefix=prefix).run())
