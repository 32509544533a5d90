"""Is the example for Django guarded, under gunicorn with two forked workers and under uvicorn, over a real broker?

The project's own database, session engine and login view; the browser sends the form with its token.
"""

import asyncio
import os
import re
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
import websockets

from lapse.pipeline.settings import Settings
from lapse.schemas import SessionClosed, SessionStarted, TopicNames, parse_activity

from tests.consumers.support import read_all
from tests.integration._servers import EXAMPLES, gunicorn, serving, uvicorn

HTML = {"accept": "text/html,application/xhtml+xml"}
PASSWORD = secrets.token_urlsafe(12)


async def _project(database: Path) -> dict[str, str]:
    """Migrate a database with two users, and return the environment that names it."""
    variables = {
        "DJANGO_SETTINGS_MODULE": "settings",
        "SECRET_KEY": secrets.token_hex(),
        "DATABASE": str(database),
        "DJANGO_SUPERUSER_PASSWORD": PASSWORD,
        "DJANGO_SUPERUSER_EMAIL": "somebody@example.org",
    }
    for command in (["migrate"], *(["createsuperuser", "--noinput", "--username", name] for name in ("ann", "bob"))):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "django",
            *command,
            cwd=EXAMPLES / "django",
            env={**os.environ, **variables},
            stdout=asyncio.subprocess.DEVNULL,
        )
        assert await process.wait() == 0
    return variables


async def _login(client: httpx2.AsyncClient, user: str) -> None:
    page = await client.get("/accounts/login/", headers=HTML)
    found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)
    assert found is not None, page.text
    form = {"csrfmiddlewaretoken": found[1], "username": user, "password": PASSWORD}
    answer = await client.post("/accounts/login/", data=form, headers=HTML)
    assert (answer.status_code, answer.headers.get("location")) == (302, "/"), answer.text


SERVERS = {
    "gunicorn": gunicorn("django.core.wsgi:get_wsgi_application()"),
    "uvicorn": uvicorn("--factory", "--lifespan", "off", "django.core.asgi:get_asgi_application"),
}


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
async def test_a_login_is_told_touched_refused_and_its_stream_is_closed(
    settings: Settings, tmp_path: Path, server: Callable[[int], list[str]]
) -> None:
    async with (
        serving(settings, "django", server, **await _project(tmp_path / "db.sqlite3")) as service,
        service.client() as ann,
        service.client() as bob,
    ):
        assert (await ann.get("/", headers=HTML)).headers["location"] == "/accounts/login/?next=/"
        await _login(ann, "ann")
        await _login(bob, "bob")
        assert (await ann.get("/", headers=HTML)).text == "ann"
        assert (await bob.get("/", headers={"x-lapse-background": "1"})).text == "bob"
        activity = TopicNames(settings.prefix).activity
        records = [parse_activity(record.value) for record in await read_all(settings, activity, 3)]
        started = {record.subject: record for record in records if isinstance(record, SessionStarted)}
        assert started.keys() == {"1", "2"}
        assert started["1"].policy == "workforce"
        touched = await service.touched(started["1"].session)
        assert started["2"].session not in touched
        api = {"cookie": f"sessionid={ann.cookies['sessionid']}", "accept": "application/json"}
        async with ann.stream("GET", "/events") as response:
            parts = response.aiter_bytes()
            assert await anext(parts) == b"data: hello\n\n"
            await service.revoke("1")
            async with asyncio.timeout(2):
                assert [part async for part in parts if b"still here" in part] == []
        answer = await service.refused(lambda: ann.get("/", headers=HTML), lambda answer: answer.status_code == 302)
        assert answer.headers["location"] == "/accounts/login/?next=/"
        assert "sessionid" not in ann.cookies  # flushed: another request is nobody's
        async with service.client() as program:
            # The session is gone from the store as well: this is nobody, and Django's own answer.
            assert (await program.get("/", headers=api)).status_code == 302
        assert (await bob.get("/", headers=HTML)).text == "bob"
        await service.revoke("2")
        answer = await service.refused(
            lambda: bob.get("/", headers={"accept": "application/json"}), lambda answer: answer.status_code != 200
        )
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["cause"] == "revoked"
        await _login(ann, "ann")
        assert (await ann.get("/", headers=HTML)).text == "ann"
        token = ann.cookies["csrftoken"]
        assert (await ann.post("/accounts/logout/", headers={"x-csrftoken": token})).status_code == 302
        async with asyncio.timeout(20):
            while not (closed := [record for record in records if isinstance(record, SessionClosed)]):
                more = await read_all(settings, activity, len(records) + 1)
                records = [parse_activity(record.value) for record in more]
        assert [record.subject for record in closed] == ["1"]


async def test_a_websocket_of_channels_is_touched_closed_and_not_opened_again(
    settings: Settings, tmp_path: Path
) -> None:
    async with (
        serving(
            settings,
            "django",
            uvicorn("--lifespan", "off", "asgi:application"),
            **await _project(tmp_path / "db.sqlite3"),
        ) as service,
        service.client() as ann,
        service.client() as bob,
    ):
        url = f"ws://127.0.0.1:{service.port}/chat"

        def opened(client: httpx2.AsyncClient) -> websockets.connect:
            headers = {"cookie": f"sessionid={client.cookies['sessionid']}"}
            return websockets.connect(url, additional_headers=headers, origin=websockets.Origin(service.url))

        await _login(ann, "ann")
        await _login(bob, "bob")
        records = await read_all(settings, TopicNames(settings.prefix).activity, 2)
        told = [parse_activity(record.value) for record in records]
        started = {record.subject: record for record in told if isinstance(record, SessionStarted)}
        with pytest.raises(websockets.InvalidStatus):  # nobody's: the consumer itself refuses
            await websockets.connect(url, origin=websockets.Origin(service.url))
        async with opened(ann) as of_ann, opened(bob) as of_bob:  # no request of theirs has touched anything else
            for socket in (of_ann, of_bob):
                await socket.send("hello")
                assert await socket.recv() == "hello"
            await service.touched(started["1"].session)
            await service.revoke("1")
            async with asyncio.timeout(2):
                with pytest.raises(websockets.ConnectionClosed) as closed:
                    await of_ann.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "session ended: revoked")
            with pytest.raises(websockets.InvalidStatus) as refused:
                await opened(ann)
            assert refused.value.response.status_code == 401
            await of_bob.send("still here")
            assert await of_bob.recv() == "still here"
        assert (await ann.get("/", headers=HTML)).headers["location"] == "/accounts/login/?next=/"
