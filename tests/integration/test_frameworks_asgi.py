"""Are the examples for Starlette, FastAPI and Litestar guarded, under a real uvicorn, over a real broker?"""

import asyncio

import pytest
import websockets

from lapse.pipeline.settings import Settings

from tests.integration._servers import serving, uvicorn


@pytest.mark.parametrize("example", ["starlette", "fastapi", "litestar"])
async def test_a_session_is_touched_refused_and_what_is_open_is_closed(settings: Settings, example: str) -> None:
    async with (
        serving(settings, example, uvicorn("app:app")) as service,
        service.client() as ann,
        service.client() as bob,
    ):
        assert (await ann.get("/me")).status_code == 401
        session = (await ann.post("/login?user=ann")).text
        polled = (await bob.post("/login?user=bob")).text
        assert (await ann.get("/me")).text == "ann"
        assert (await bob.get("/me", headers={"x-lapse-background": "1"})).text == "bob"
        assert polled not in await service.touched(session)
        url, headers = f"ws://127.0.0.1:{service.port}/chat", {"cookie": f"sid={ann.cookies['sid']}"}
        async with (
            websockets.connect(url, additional_headers=headers) as socket,
            ann.stream("GET", "/events") as response,
        ):
            await socket.send("hello")
            assert await socket.recv() == "hello"
            parts = response.aiter_bytes()
            assert b"hello" in await anext(parts)
            await service.revoke("ann")
            async with asyncio.timeout(2):  # the application sends something once in five seconds
                assert [part async for part in parts if b"hello" in part] == []
                with pytest.raises(websockets.ConnectionClosed) as closed:
                    await socket.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "session ended: revoked")
        answer = await service.refused(lambda: ann.get("/me"), lambda answer: answer.status_code != 200)
        assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json")
        assert answer.json()["cause"] == "revoked"
        sid = ann.cookies["sid"]
        for hidden in (f"sid=x; sid={sid}", f"sid={sid}; sid=x", f"sid=%{ord(sid[0]):02x}{sid[1:]}"):
            async with service.client(headers={"cookie": hidden}) as somebody:
                assert (await somebody.get("/me")).json().get("cause") == "revoked", hidden
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(url, additional_headers=headers)
        assert refused.value.response.status_code == 401
        assert (await bob.get("/me")).text == "bob"
        assert (await ann.post("/login?user=ann")).text != session
        assert (await ann.get("/me")).text == "ann"
