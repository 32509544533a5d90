"""How do appliers speak to PostgreSQL and SQLite? One connection, by name of parameter, every statement by itself.

Statements name their parameters as `:reference`; for PostgreSQL that becomes `%(reference)s`.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from lapse.consumers.appliers.effects import Unavailable
from lapse.schemas import ConfigError

__all__ = ["PARAMETERS", "Database", "connect"]

PARAMETERS: Final = ("reference", "subject", "tenant", "cause", "session_key", "session_data", "after", "count")
_NAMED: Final = re.compile(rf"(?<![:\w]):({'|'.join(PARAMETERS)})\b")

_TIMEOUT_S: Final = 5.0

Values = Mapping[str, object]


class Database(Protocol):
    """A database. Every method raises Unavailable where it does not answer."""

    async def check(self, statement: str, values: Values) -> None:
        """Run a statement and take it back; raise ConfigError if the database refuses it."""

    async def read(self, statement: str, values: Sequence[Values]) -> list[tuple[Any, ...]]:
        """Return the rows of a query that is asked for each of these."""

    async def write(self, statement: str, values: Sequence[Values]) -> int:
        """Run a statement for each of these, in one transaction, and return how many rows it concerned."""

    async def close(self) -> None:
        """Disconnect; the next call connects anew."""


def connect(url: str) -> Database:
    """Return the database that a URL names: `postgresql://...` or `sqlite:///path`; it connects when it is asked.

    Raises:
        ConfigError: it names neither.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite" and rest.startswith("/") and rest != "/":
        # As SQLAlchemy has it: three slashes and a path, four and an absolute one.
        return SqliteDatabase(rest[1:])
    if scheme in {"postgresql", "postgres"}:
        return PostgresDatabase(url)
    raise ConfigError("the store is no database URL: postgresql://... or sqlite:///path is expected")


class SqliteDatabase:
    """A SQLite file, in a thread: its calls block."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._turn = asyncio.Lock()

    async def check(self, statement: str, values: Values) -> None:
        def run(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN")
            try:
                connection.execute(statement, values)
            finally:
                connection.rollback()

        try:
            await self._run(run)
        except Unavailable as refused:
            if isinstance(refused.__cause__, sqlite3.ProgrammingError) or _is_statements_fault(refused.__cause__):
                raise ConfigError(f"the database refuses the statement: {refused.__cause__}") from None
            raise

    async def read(self, statement: str, values: Sequence[Values]) -> list[tuple[Any, ...]]:
        def run(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
            return [row for one in values for row in connection.execute(statement, one)]

        rows: list[tuple[Any, ...]] = await self._run(run)
        return rows

    async def write(self, statement: str, values: Sequence[Values]) -> int:
        def run(connection: sqlite3.Connection) -> int:
            connection.execute("BEGIN IMMEDIATE")
            try:
                concerned = connection.executemany(statement, values).rowcount
            except BaseException:
                connection.rollback()
                raise
            connection.commit()
            return concerned

        concerned: int = await self._run(run)
        return concerned

    async def close(self) -> None:
        async with self._turn:
            connection, self._connection = self._connection, None
            if connection is not None:
                await asyncio.to_thread(connection.close)

    async def _run(self, work: Any) -> Any:
        async with self._turn:
            try:
                if self._connection is None:
                    self._connection = await asyncio.to_thread(self._open)
                return await asyncio.to_thread(work, self._connection)
            except sqlite3.Error as broken:
                raise Unavailable(f"{self._path}: {broken}") from broken

    def _open(self) -> sqlite3.Connection:
        # Not made where there is none: a path with a mistake in it would be an empty store, in which nothing ends.
        return sqlite3.connect(
            f"file:{self._path}?mode=rw", uri=True, timeout=_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )


def _is_statements_fault(error: BaseException | None) -> bool:
    """Return whether SQLite blames the statement: it has one code for that (1), and others for locks and files."""
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_ERROR


class PostgresDatabase:
    """A PostgreSQL database."""

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ModuleNotFoundError:
            raise ConfigError("psycopg is not installed: pip install 'lapse[sql]' brings it") from None
        self._psycopg = psycopg
        self._url = url
        self._connection: psycopg.AsyncConnection[tuple[Any, ...]] | None = None
        self._turn = asyncio.Lock()

    async def check(self, statement: str, values: Values) -> None:
        async with self._turn:
            connection = await self._connected()
            try:
                async with connection.transaction(force_rollback=True):
                    await connection.execute(_for_postgres(statement), values)
            except (self._psycopg.ProgrammingError, self._psycopg.DataError) as refused:
                raise ConfigError(f"the database refuses the statement: {refused}") from None
            except self._psycopg.Error as broken:
                raise await self._broken(broken) from broken

    async def read(self, statement: str, values: Sequence[Values]) -> list[tuple[Any, ...]]:
        if not values:
            return []
        async with self._turn:
            connection = await self._connected()
            try:
                async with connection.cursor() as cursor:
                    await cursor.executemany(_for_postgres(statement), values, returning=True)
                    rows: list[tuple[Any, ...]] = await cursor.fetchall()
                    while cursor.nextset():
                        rows += await cursor.fetchall()
                    return rows
            except (self._psycopg.Error, TimeoutError) as broken:
                raise await self._broken(broken) from broken

    async def write(self, statement: str, values: Sequence[Values]) -> int:
        async with self._turn:
            connection = await self._connected()
            try:
                async with connection.transaction(), connection.cursor() as cursor:
                    await cursor.executemany(_for_postgres(statement), values)
                    concerned: int = cursor.rowcount
                    return max(0, concerned)
            except (self._psycopg.Error, TimeoutError) as broken:
                raise await self._broken(broken) from broken

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _connected(self) -> Any:
        if self._connection is None:
            try:
                self._connection = await self._psycopg.AsyncConnection.connect(
                    self._url,
                    autocommit=True,
                    connect_timeout=int(_TIMEOUT_S),
                    # A lock of somebody else's, or a statement without an index, must not hold endings silently.
                    options=f"-c lock_timeout={int(_TIMEOUT_S * 1000)} -c statement_timeout={int(_TIMEOUT_S * 6000)}",
                    application_name="lapse-apply",
                    tcp_user_timeout=int(_TIMEOUT_S * 1000),
                )
            except self._psycopg.ProgrammingError as refused:
                raise ConfigError("the store is no PostgreSQL URL") from refused
            except self._psycopg.Error as broken:
                raise Unavailable(f"PostgreSQL does not answer: {broken}") from broken
        return self._connection

    async def _broken(self, broken: BaseException) -> Unavailable:
        """Let go of the connection: the next call makes another."""
        await self.close()
        return Unavailable(f"PostgreSQL: {type(broken).__name__} {broken}")


def _for_postgres(statement: str) -> Any:
    return _NAMED.sub(r"%(\1)s", statement.replace("%", "%%")).encode()
