"""Goal: ended sessions leave their tables. Method: a real SQLite file and a real PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lapse.consumers.appliers import IndexedEffect, Unavailable
from lapse.consumers.appliers.databases import Database, SqliteDatabase, connect
from lapse.consumers.appliers.django import DjangoStore
from lapse.consumers.appliers.sql import SqlEffect
from lapse.consumers.frameworks.django_data import DATA
from lapse.schemas import ConfigError, session_reference

from tests.consumers.appliers.support import ending, nothing_appended
from tests.consumers.support import until
from tests.consumers.test_django_data import row
from tests.servers import postgres

TABLES = (
    "CREATE TABLE django_session (session_key varchar(40) PRIMARY KEY, session_data text, expire_date varchar(40))",
    "CREATE TABLE sessions (reference varchar(22) PRIMARY KEY, owner varchar(40))",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database with the two tables."""
    if request.param == "sqlite":
        sqlite3.connect(tmp_path / "app.db").close()
        url = f"sqlite:///{tmp_path / 'app.db'}"
    else:
        url = request.getfixturevalue("server")
    database = connect(url)
    for table in TABLES:
        await database.write(f"DROP TABLE IF EXISTS {table.split()[2]}", [{}])
        await database.write(table, [{}])
    await database.close()
    return url


COLUMNS = {"django_session": "session_key", "sessions": "reference"}


async def insert(database: Database, table: str, values: Sequence[str]) -> None:
    name = COLUMNS[table]
    if table == "django_session":
        statement = f"INSERT INTO {table} VALUES (:session_key, 'e30:1sX:sig', '')"  # noqa: S608  # of this test
    else:
        statement = f"INSERT INTO {table} ({name}) VALUES (:{name})"  # noqa: S608  # the names are this test's own
    await database.write(statement, [{name: value} for value in values])


async def column(database: Database, table: str) -> set[str]:
    statement = f"SELECT {COLUMNS[table]} FROM {table}"  # noqa: S608  # the names are this test's own
    return {row[0] for row in await database.read(statement, [{}])}


async def test_djangos_sessions_of_before_and_of_just_now_are_deleted(url: str) -> None:
    other = connect(url)
    await insert(other, "django_session", [f"key{number:05d}" for number in range(4_500)])
    effect = IndexedEffect(DjangoStore(connect(url)), pass_interval_s=0.2)
    await effect.start(nothing_appended)
    try:
        assert effect.entries == 4_500
        await insert(other, "django_session", ["young"])
        await effect.apply([ending("key00000"), ending("key02000"), ending("key04499"), ending("young")])
        left = await column(other, "django_session")
        assert len(left) == 4_497
        assert "young" not in left
        await insert(other, "django_session", ["young"])  # a request under way saves its session
        done = effect.done
        await until(lambda: effect.done > done)
        assert "young" not in await column(other, "django_session")
    finally:
        await effect.stop()
        await other.close()


async def put(database: Database, key: str, session: object) -> None:
    """Save a session as Django does."""
    await database.write("DELETE FROM django_session WHERE session_key = :session_key", [{"session_key": key}])
    statement = "INSERT INTO django_session VALUES (:session_key, :session_data, '')"
    await database.write(statement, [{"session_key": key, "session_data": row(session)}])


async def test_a_login_is_found_by_the_id_in_its_data_and_another_in_the_same_session_stays(url: str) -> None:
    other = connect(url)
    for key in ("one", "two", "three"):
        await put(other, key, {DATA: {"id": f"login-{key}"}, "cart": ["apples"] * 50})
    await put(other, "anonymous", {"cart": []})
    effect = IndexedEffect(DjangoStore(connect(url)), pass_interval_s=3_600.0)
    await effect.start(nothing_appended)
    try:
        await put(other, "two", {DATA: {"id": "login-two-again"}})  # the same key, and another login
        await other.write("UPDATE django_session SET session_key = 'moved' WHERE session_key = 'three'", [{}])
        await effect.apply([ending("login-one"), ending("login-two"), ending("login-three"), ending("one")])
        assert await column(other, "django_session") == {"two", "anonymous"}
        await effect.apply([ending("login-two-again"), ending("anonymous")])
        assert await column(other, "django_session") == set()
    finally:
        await effect.stop()
        await other.close()


async def test_a_row_that_is_saved_between_reading_and_deleting_is_deleted_by_a_pass(
    tmp_path: Path,
) -> None:
    path = tmp_path / "app.db"
    with sqlite3.connect(path) as made:
        made.execute(TABLES[0])
    made.close()
    url = f"sqlite:///{path}"
    other = connect(url)
    session = {DATA: {"id": "a"}}
    await put(other, "key", session)

    class _Saving(SqliteDatabase):
        saved = False

        async def write(self, statement: str, values: Sequence[Mapping[str, object]]) -> int:
            if not self.saved:
                self.saved = True
                await put(other, "key", {**session, "cart": ["one more"]})
            return await super().write(statement, values)

    effect = IndexedEffect(DjangoStore(_Saving(str(path))), pass_interval_s=3_600.0)
    await effect.start(nothing_appended)
    try:
        await effect.apply([ending("a")])
        assert await column(other, "django_session") == set()
        assert effect.done == 1
    finally:
        await effect.stop()
        await other.close()


async def test_a_statement_is_run_for_each_ending_and_again_for_what_comes_late(url: str) -> None:
    other = connect(url)
    one, two, late = (session_reference(name) for name in ("one", "two", "late"))
    await insert(other, "sessions", [one, two])
    effect = SqlEffect(connect(url), "DELETE FROM sessions WHERE reference = :reference", look_interval_s=0.1)
    await effect.start(nothing_appended)
    try:
        await effect.apply([ending("one"), ending("late")])
        assert await column(other, "sessions") == {two}
        assert effect.done == 1
        await insert(other, "sessions", [late])
        await until(lambda: effect.done == 2)
        assert await column(other, "sessions") == {two}
    finally:
        await effect.stop()
        await other.close()


async def test_a_statement_may_use_what_else_an_ending_says(url: str) -> None:
    other = connect(url)
    await insert(other, "sessions", [session_reference("one")])
    statement = "UPDATE sessions SET owner = :subject || '-' || :cause WHERE reference = :reference AND '5%' <> '6%'"
    effect = SqlEffect(connect(url), statement)
    await effect.start(nothing_appended)
    try:
        await effect.apply([ending("one", subject="u-7")])
        assert await other.read("SELECT owner FROM sessions", [{}]) == [("u-7-idle",)]
    finally:
        await effect.stop()
        await other.close()


@pytest.mark.parametrize("statement", ["DELETE FROM nowhere WHERE reference = :reference", "DELETE :reference"])
async def test_a_statement_that_the_database_refuses_is_refused_at_start(url: str, statement: str) -> None:
    effect = SqlEffect(connect(url), statement)
    with pytest.raises(ConfigError, match="refuses the statement"):
        await effect.start(nothing_appended)
    await effect.stop()


async def test_a_database_that_is_away_is_unavailable(tmp_path: Path) -> None:
    missing = connect(f"sqlite:///{tmp_path / 'missing.db'}")
    with pytest.raises(Unavailable):
        await missing.read("SELECT 1", [{}])
    nobody = connect("postgresql://lapse@127.0.0.1:9/postgres")
    with pytest.raises(Unavailable):
        await nobody.read("SELECT 1", [{}])


async def test_a_lock_of_somebody_else_is_waited_out(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    with sqlite3.connect(path) as holder:
        holder.execute(TABLES[1])
    holder.isolation_level = None
    holder.execute("BEGIN IMMEDIATE")
    effect = SqlEffect(connect(f"sqlite:///{path}"), "DELETE FROM sessions WHERE reference = :reference")
    with pytest.raises(Unavailable, match="locked"):
        await effect.apply([ending("one")])
    holder.rollback()
    await effect.apply([ending("one")])
    await effect.stop()
    holder.close()


def test_what_names_no_database_or_no_table_or_everything_is_refused() -> None:
    wrong: list[Any] = [
        lambda: connect("mysql://localhost/x"),
        lambda: connect("sqlite://relative"),
        lambda: DjangoStore(connect("sqlite:///x"), "x; DROP TABLE y"),
        lambda: SqlEffect(connect("sqlite:///x"), "DELETE FROM sessions"),
    ]
    for make in wrong:
        with pytest.raises(ConfigError):
            make()
