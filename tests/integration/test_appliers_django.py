"""Goal: a login by the middleware at its defaults, once revoked, leaves the store that Django keeps it in; others stay.

Method: the example's project in a process of its own, with real logins by its forms, over a real broker, a real worker
and the real program; its sessions in SQLite, in PostgreSQL, in a Redis, and in both. Passes that nothing asks for are
kept away, so that what Django has moved to another key since the first pass is found because it is missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import sys
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis

from lapse.consumers.appliers.databases import connect

from tests.brokers import Broker
from tests.cli.running import program_environment
from tests.consumers.support import free_port
from tests.integration._estate import Estate, estate_on
from tests.integration._raw import Stored
from tests.integration._servers import EXAMPLES, gunicorn, until_up
from tests.integration.test_appliers import applying, committed, until_reported, until_true
from tests.servers import postgres, redis

pytestmark = [pytest.mark.broker, pytest.mark.slow]

HTML = {"accept": "text/html,application/xhtml+xml"}
WORKFORCE = {"type": "policy", "name": "workforce", "idle_ms": 3_600_000, "absolute_ms": None}
NEVER = ("--every", "1h")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def estate(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Estate]:
    with estate_on(broker, tmp_path_factory.mktemp("estate"), WORKFORCE) as made:
        yield made


class Project:
    """The example's project, whose database has two users, and what its store has of their sessions.

    Args:
        variables: where the project keeps its data.
        keys: returns the keys of all sessions that the store has.
        appliers: arguments and LAPSE_STORE of each that belongs to this store.
    """

    def __init__(
        self,
        estate: Estate,
        variables: dict[str, str],
        keys: Callable[[], Awaitable[set[str]]],
        *appliers: tuple[str, tuple[str, ...], str],
    ) -> None:
        self.keys = keys
        self.appliers = appliers
        self.password = secrets.token_urlsafe(12)
        self._port = free_port()
        self._environment = program_environment(
            LAPSE_KAFKA=estate.bootstrap,
            LAPSE_PREFIX=estate.prefix,
            DJANGO_SETTINGS_MODULE="tests.integration._django_settings",
            PYTHONPATH=f"{ROOT}:{EXAMPLES / 'django'}",
            SECRET_KEY=secrets.token_hex(),
            DJANGO_SUPERUSER_PASSWORD=self.password,
            DJANGO_SUPERUSER_EMAIL="somebody@example.org",
            **variables,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        users = (["createsuperuser", "--noinput", "--username", name] for name in ("ann", "bob"))
        for command in (["migrate"], *users):
            made = await self._start([sys.executable, "-m", "django", *command])
            assert await made.wait() == 0
        served = await self._start(gunicorn("django.core.wsgi:get_wsgi_application()")(self._port))
        try:
            await until_up(served, self._port)
            yield
        finally:
            served.terminate()
            await asyncio.wait_for(served.wait(), 30)

    async def _start(self, command: list[str]) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *command, cwd=EXAMPLES / "django", env=self._environment, stdout=DEVNULL
        )

    def browser(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=f"http://127.0.0.1:{self._port}", timeout=20.0, headers=HTML)

    async def log_in(self, browser: httpx2.AsyncClient, user: str) -> str:
        """Log in by the form, and return the session's key."""
        page = await browser.get("/accounts/login/")
        found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)
        assert found is not None, page.text
        form = {"csrfmiddlewaretoken": found[1], "username": user, "password": self.password}
        answer = await browser.post("/accounts/login/", data=form)
        assert (answer.status_code, answer.headers.get("location")) == (302, "/"), answer.text
        assert (await browser.get("/")).text == user
        return browser.cookies["sessionid"]

    async def change_password(self, browser: httpx2.AsyncClient) -> str:
        """Change the user's password, with which Django changes the session's key; return the new key."""
        form = {"old_password": self.password, "new_password1": "other-" + self.password}
        form |= {"new_password2": form["new_password1"], "csrfmiddlewaretoken": browser.cookies["csrftoken"]}
        answer = await browser.post("/accounts/password_change/", data=form)
        assert answer.status_code == 302, answer.text
        return browser.cookies["sessionid"]


@contextlib.contextmanager
def _in_table(estate: Estate, variables: dict[str, str], url: str) -> Iterator[Project]:
    yield Project(estate, variables, _keys_of_table(url), ("apply-django", ("django",), url))


def _keys_of_table(url: str) -> Callable[[], Awaitable[set[str]]]:
    async def keys() -> set[str]:
        database = connect(url)
        try:
            return {row[0] for row in await database.read("SELECT session_key FROM django_session", [{}])}
        finally:
            await database.close()

    return keys


def _keys_of_redis(url: str, engine: str) -> Callable[[], Awaitable[set[str]]]:
    async def keys() -> set[str]:
        client: Any = Redis.from_url(url)
        try:
            before = f":1:django.contrib.sessions.{engine}"
            return {key.decode().removeprefix(before) for key in await client.keys(f"{before}*")}
        finally:
            await client.aclose()

    return keys


@contextlib.contextmanager
def in_sqlite(estate: Estate, directory: Path) -> Iterator[Project]:
    path = str(directory / "db.sqlite3")
    with _in_table(estate, {"DATABASE": path}, f"sqlite:///{path}") as project:
        yield project


@contextlib.contextmanager
def in_postgres(estate: Estate, directory: Path) -> Iterator[Project]:
    with postgres(directory) as url, _in_table(estate, {"DATABASE_URL": url}, url) as project:
        yield project


@contextlib.contextmanager
def in_redis(estate: Estate, directory: Path) -> Iterator[Project]:
    with redis(directory) as url:
        variables = {
            "DATABASE": str(directory / "db.sqlite3"),
            "CACHE_URL": url,
            "SESSION_ENGINE": "django.contrib.sessions.backends.cache",
        }
        applier = ("apply-redis", ("redis", "--layout", "django"), url)
        yield Project(estate, variables, _keys_of_redis(url, "cache"), applier)


@contextlib.contextmanager
def in_both(estate: Estate, directory: Path) -> Iterator[Project]:
    with redis(directory) as url:
        path = directory / "db.sqlite3"
        variables = {
            "DATABASE": str(path),
            "CACHE_URL": url,
            "SESSION_ENGINE": "django.contrib.sessions.backends.cached_db",
        }
        cached, kept = _keys_of_redis(url, "cached_db"), _keys_of_table(f"sqlite:///{path}")

        async def keys() -> set[str]:
            return await cached() | await kept()

        yield Project(
            estate,
            variables,
            keys,
            ("apply-redis", ("redis", "--layout", "django-cached-db"), url),
            ("apply-django", ("django",), f"sqlite:///{path}"),
        )


def closed_endings(estate: Estate) -> list[Stored]:
    return [one for one in estate.read("expiries").to_end() if one.json.get("cause") == "closed"]


def closed_ending(estate: Estate, before: int) -> Stored:
    """Return the first ending by a logout that stands behind so many others."""
    found: list[Stored] = []

    def is_there(_: list[Stored]) -> bool:
        found[:] = closed_endings(estate)[before:]
        return bool(found)

    estate.read("expiries").until(is_there, "the ending of the login before")
    return found[0]


async def until_applied(estate: Estate, name: str, ending: Stored) -> None:
    """Return when the applier has committed this ending, which it does once it has had its effect."""

    async def holds() -> bool:
        return ((await committed(estate.settings, name))[ending.partition] or 0) > ending.offset

    await until_true(holds)


@pytest.mark.parametrize("store", [in_sqlite, in_postgres, in_redis, in_both])
async def test_a_revoked_login_leaves_its_store_under_whatever_key_and_the_others_stay(
    estate: Estate, tmp_path: Path, store: Callable[[Estate, Path], contextlib.AbstractContextManager[Project]]
) -> None:
    async def revoke(subject: str) -> None:
        await asyncio.to_thread(estate.lapse, "revoke", "subject", subject, "--reason", "left")

    async def until_left(keys: set[str]) -> None:
        async def holds() -> bool:
            return await project.keys() == keys

        await until_true(holds)

    closed = await asyncio.to_thread(closed_endings, estate)
    async with contextlib.AsyncExitStack() as stack:
        project = stack.enter_context(store(estate, tmp_path))
        await stack.enter_async_context(project.running())
        desk, phone, bobs = [await stack.enter_async_context(project.browser()) for _ in range(3)]
        at_desk, on_phone, of_bob = [
            await project.log_in(browser, user) for browser, user in ((desk, "ann"), (phone, "ann"), (bobs, "bob"))
        ]
        assert await project.keys() == {at_desk, on_phone, of_bob}
        names = [f"{name}-{secrets.token_hex(2)}" for name, _, _ in project.appliers]
        for name, (_, arguments, url) in zip(names, project.appliers, strict=True):
            program = applying(estate.settings, *arguments, *NEVER, "--name", name, LAPSE_STORE=url)
            await stack.enter_async_context(program)
            status = await until_reported(estate.settings, name)
            assert status.entries == 3
        # What the pass has seen at one key is at another now, and the phone's where it was.
        moved = await project.change_password(desk)
        assert moved != at_desk
        # Who logs in again in the same session keeps its key: the login before is closed, and this one is live.
        assert await project.log_in(bobs, "bob") == of_bob
        relogin = await asyncio.to_thread(closed_ending, estate, len(closed))
        await revoke("1")
        await until_left({of_bob})
        for name in names:
            await until_applied(estate, name, relogin)
        assert await project.keys() == {of_bob}
        assert (await bobs.get("/")).text == "bob"
        await revoke("2")
        await until_left(set())
