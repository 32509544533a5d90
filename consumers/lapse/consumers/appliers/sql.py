"""How does a session end that has a row with its reference in it?

A statement is run for each ending, such as `DELETE FROM sessions WHERE reference = :reference`; it may also use
`:subject`, `:tenant` and `:cause`. Run again, it must change nothing. It is checked at start, and taken back.

The row may be written after its ending (a login that is overtaken by a revocation), or be written back by a request
that was under way. So the statement is run again for what ended within `memory_s`, every `look_interval_s`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final

from lapse.consumers.appliers.databases import Database
from lapse.consumers.appliers.effects import Ending, Ends, Rejected, Unavailable
from lapse.consumers.appliers.indexed import ENDED_MAX, MEMORY_S
from lapse.schemas import ConfigError, SessionEnded

__all__ = ["SqlEffect"]

_log = logging.getLogger("lapse.consumers")

_BATCH: Final = 500


class SqlEffect:
    """Runs a statement for each ending; see the module.

    Raises:
        ConfigError: the statement does not name `:reference`.
    """

    def __init__(
        self, database: Database, statement: str, *, look_interval_s: float = 30.0, memory_s: float = MEMORY_S
    ) -> None:
        if ":reference" not in statement:
            raise ConfigError("the statement does not name :reference: it would concern rows that nothing ended")
        self._database = database
        self._statement = statement
        self._look_interval_s = look_interval_s
        self._memory_s = memory_s
        self._ended: dict[str, tuple[float, Mapping[str, object]]] = {}  # reference -> forget at, parameters
        self._looking: asyncio.Task[None] | None = None
        self.done = 0

    @property
    def entries(self) -> int:
        return len(self._ended)

    async def start(self, ends: Ends) -> None:
        nobody = {"reference": "", "subject": "", "tenant": None, "cause": "idle"}
        await self._database.check(self._statement, nobody)
        self._looking = asyncio.create_task(self._look(), name="lapse-apply-second-look")

    async def apply(self, endings: Sequence[Ending]) -> Sequence[Rejected]:
        forget_at = time.monotonic() + self._memory_s
        for ending in endings:
            self._ended.pop(ending.ended.session, None)
            self._ended[ending.ended.session] = (forget_at, _parameters(ending.ended))
        self.done += await self._database.write(self._statement, [_parameters(ending.ended) for ending in endings])
        self._forget()
        return ()

    async def stop(self) -> None:
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        await self._database.close()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._look_interval_s)
            self._forget()
            again = [parameters for _, parameters in self._ended.values()]
            try:
                for first in range(0, len(again), _BATCH):
                    self.done += await self._database.write(self._statement, again[first : first + _BATCH])
            except Unavailable as error:
                _log.warning("the second look waits: %s", error)
            except Exception:  # a fault of ours: without second looks, what is written back would stay
                _log.exception("the second look failed and is repeated")

    def _forget(self) -> None:
        now = time.monotonic()
        while self._ended:
            oldest = next(iter(self._ended))
            if self._ended[oldest][0] > now and len(self._ended) <= ENDED_MAX:
                return
            del self._ended[oldest]


def _parameters(ended: SessionEnded) -> Mapping[str, object]:
    return {
        "reference": ended.session,
        "subject": ended.subject,
        "tenant": ended.tenant,
        "cause": str(ended.cause.value),
    }
