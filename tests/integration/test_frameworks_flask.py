"""Are the examples for Flask and WSGI guarded, under a real gunicorn of two forked workers, over a real broker?"""

import asyncio
import secrets

import httpx2
import pytest
import websockets

from lapse.consumers import session_reference
from lapse.pipeline.settings import Settings

from tests.integration._servers import gunicorn, serving, token


async def _login(client: httpx2.AsyncClient, user: str) -> str:
    answer = await client.post("/login", data={"user": user})
    assert answer.status_code == 200, answer.text
    return answer.text


def _is_refused(answer: httpx2.Response) -> bool:
    return answer.status_code == 401


async def test_a_flask_session_is_touched_refused_and_what_is_open_is_closed(settings: Settings) -> None:
    variables = {
        "FLASK_SECRET_KEY": secrets.token_hex(),
        "FLASK_LAPSE_KAFKA": settings.kafka,
        "FLASK_LAPSE_PREFIX": settings.prefix,
    }
    async with (
        serving(settings, "flask", gunicorn("app:app"), **variables) as service,
        service.client() as browser,
        service.client() as poller,
        service.client() as bystander,
    ):
        assert (await browser.get("/me")).status_code == 401  # nobody's: the view itself refuses
        session, polled = await _login(browser, "u-1"), await _login(poller, "u-2")
        await _login(bystander, "u-3")
        assert (await browser.get("/me")).text == "u-1"
        assert (await poller.get("/me", headers={"x-lapse-background": "1"})).status_code == 200
        assert polled not in await service.touched(session)
        url, headers = f"ws://127.0.0.1:{service.port}/chat", {"cookie": f"session={browser.cookies['session']}"}
        async with (
            websockets.connect(url, additional_headers=headers) as socket,
            browser.stream("GET", "/events") as response,
        ):
            await socket.send("hello")
            assert await socket.recv() == "hello"
            parts = response.aiter_bytes()
            assert await anext(parts) == b"data: hello\n\n"
            await service.revoke("u-1")
            async with asyncio.timeout(2):  # it waits for five seconds between two parts
                assert [part async for part in parts if b"still here" in part] == []
                with pytest.raises(websockets.ConnectionClosed) as closed:
                    await socket.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "session ended: revoked")
        answer = await service.refused(lambda: browser.get("/me"), _is_refused)
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(url, additional_headers=headers)
        assert refused.value.response.status_code == 401
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["cause"] == "revoked"
        assert (await bystander.get("/me")).text == "u-3"
        assert await _login(browser, "u-1") != session  # a later login passes
        assert (await browser.get("/me")).text == "u-1"


async def test_a_session_told_by_a_token_is_guarded_in_plain_wsgi(settings: Settings) -> None:
    async with serving(settings, "wsgi", gunicorn("app:app", "--preload")) as service, service.client() as client:
        assert (await client.get("/")).text == "nobody"
        client.headers["authorization"] = f"Bearer {token(sid='s-1', sub='u-1', auth_time=1_700_000_000)}"
        assert (await client.get("/")).text == "u-1"
        assert session_reference("s-1") in await service.touched(session_reference("s-1"))
        async with client.stream("GET", "/events") as response:
            parts = response.aiter_bytes()
            assert await anext(parts) == b"data: hello\n\n"
            await service.revoke("u-1")
            async with asyncio.timeout(2):
                assert [part async for part in parts if b"still here" in part] == []
        answer = await service.refused(lambda: client.get("/"), _is_refused)
        assert answer.json()["cause"] == "revoked"
