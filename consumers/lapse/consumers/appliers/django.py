"""How does a session end that lives in Django's session table?

A login by Lapse's middleware has an id of its own, in the row's `session_data` (django_data.py), and keeps it where
Django changes the row's `session_key`. Rows are read in the order of the primary key, each portion after the last one's
end, and known by that id; a row without one is known by its key, as the cookie has it. Neither Django nor the project's
SECRET_KEY is needed.

A row is deleted as long as the login that has ended is in it: whoever logs in again in the same session keeps the row,
and is somebody's live session.

With `cached_db`, the cache holds a copy that Django asks first: an applier of the Redis belongs beside this one.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

from lapse.consumers.appliers.databases import Database
from lapse.consumers.appliers.moving import Moving
from lapse.consumers.frameworks.django_data import login_in_row
from lapse.schemas import ConfigError

__all__ = ["DjangoStore"]

_PORTION: Final = 500
"""Rows read at once: at 64 KB each, which is a large session, 32 MB; 10 ms of decoding and hashing at 17 us each."""

_TABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}(\.[A-Za-z_][A-Za-z0-9_]{0,62})?")


class DjangoStore:
    """The sessions in Django's table.

    Raises:
        ConfigError: the table's name is none.
    """

    moves: Final = True

    def __init__(self, database: Database, table: str = "django_session") -> None:
        if _TABLE.fullmatch(table) is None:
            raise ConfigError(f"{table!r} is no table's name")
        self._database = database
        self._moving = Moving(login_in_row)
        # The name was looked at just now, and parameters are told apart from the statement by the driver.
        read = f"SELECT session_key, session_data FROM {table} WHERE"  # noqa: S608
        self._select = f"{read} session_key > :after ORDER BY session_key LIMIT :count"
        self._select_one = f"{read} session_key = :session_key"
        self._delete = f"DELETE FROM {table} WHERE session_key = :session_key AND session_data = :session_data"  # noqa: S608

    async def start(self) -> None:
        await self._database.check(self._delete, {"session_key": "", "session_data": ""})

    async def walk(self) -> AsyncIterator[Sequence[tuple[str, str]]]:
        after = ""
        while True:
            rows = await self._database.read(self._select, [{"after": after, "count": _PORTION}])
            yield [self._moving.session(key, data) for key, data in rows]
            if len(rows) < _PORTION:
                return
            after = rows[-1][0]

    async def hints(self, references: Sequence[str]) -> Mapping[str, str]:
        return {}

    async def delete(self, places: Sequence[str], subjects: Mapping[str, str]) -> int:
        at = {self._moving.key(place): place for place in places}
        rows = await self._database.read(self._select_one, [{"session_key": key} for key in at])
        # A request may save the session between the two statements; then it stays for the next look.
        same = [{"session_key": key, "session_data": data} for key, data in rows if self._moving.is_at(at[key], data)]
        return await self._database.write(self._delete, same) if same else 0

    async def stop(self) -> None:
        await self._database.close()
