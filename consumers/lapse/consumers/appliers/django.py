"""How does a session end that lives in Django's session table?

`django_session` is known by `session_key`, which is the cookie's value and so a credential: its references are found by
walking over the table (indexed.py). Rows are read in the order of the primary key, each portion after the last one's
end, so that whatever is there from the beginning to the end of it comes. Django itself is not needed.

With `cached_db`, the cache holds a copy that Django asks first: an applier of the Redis belongs beside this one.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

from lapse.consumers.appliers.databases import Database
from lapse.schemas import ConfigError

__all__ = ["DjangoStore"]

_PORTION: Final = 2_000
_TABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}(\.[A-Za-z_][A-Za-z0-9_]{0,62})?")


class DjangoStore:
    """The sessions in Django's table.

    Raises:
        ConfigError: the table's name is none.
    """

    def __init__(self, database: Database, table: str = "django_session") -> None:
        if _TABLE.fullmatch(table) is None:
            raise ConfigError(f"{table!r} is no table's name")
        self._database = database
        # The name was looked at just now, and parameters are told apart from the statement by the driver.
        self._select = f"SELECT session_key FROM {table} WHERE session_key > :after ORDER BY session_key LIMIT :count"  # noqa: S608
        self._delete = f"DELETE FROM {table} WHERE session_key = :session_key"  # noqa: S608

    async def start(self) -> None:
        await self._database.check(self._delete, {"session_key": ""})

    async def ids(self) -> AsyncIterator[Sequence[str]]:
        after = ""
        while True:
            rows = await self._database.read(self._select, {"after": after, "count": _PORTION})
            keys = [str(row[0]) for row in rows]
            yield keys
            if len(keys) < _PORTION:
                return
            after = keys[-1]

    async def hints(self, references: Sequence[str]) -> Mapping[str, str]:
        return {}

    async def delete(self, ids: Sequence[str], subjects: Mapping[str, str]) -> int:
        return await self._database.write(self._delete, [{"session_key": one} for one in ids])

    async def stop(self) -> None:
        await self._database.close()
