"""Is a service in any language guarded by its proxy and the sidecar? Each proxy for real, with infra/proxies/ as it is.

`make test` runs the first test for each of them; `make test-proxies` runs all.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx2
import pytest
import websockets

from lapse.pipeline.settings import Settings
from lapse.schemas import Cause, Revocation, session_reference

from tests.proxies.running import PROXIES, Proxy
from tests.proxies.stage import Stage, login, staged

LIMIT_S = 1.0


@pytest.fixture(params=PROXIES)
def proxy(request: pytest.FixtureRequest) -> Proxy:
    return PROXIES[request.param]


async def _refused(stage: Stage, headers: dict[str, str], path: str = "/orders") -> tuple[httpx2.Response, float]:
    """Return the first refusal, and after how long it came."""
    began = time.monotonic()
    async with asyncio.timeout(10):
        while (answer := await stage.client.get(path, headers=headers)).status_code == 200:
            pass
    return answer, time.monotonic() - began


def _is_problem(answer: httpx2.Response, cause: str) -> None:
    assert answer.status_code == 401
    assert answer.headers["content-type"].split(";")[0] == "application/problem+json"
    assert answer.headers["x-lapse-cause"] == cause
    assert answer.headers["www-authenticate"] == 'Lapse realm="session"'
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["cause"] == (cause if cause in set(Cause) else None)
    assert answer.json()["status"] == 401
    assert "x-service" not in answer.headers, "the service was reached"


async def test_a_live_session_passes_and_is_touched_and_a_revoked_one_is_refused(
    proxy: Proxy, tmp_path: Path, settings: Settings
) -> None:
    async with staged(proxy, tmp_path, settings) as stage:
        by_token, by_cookie = login(), login(sub="u-2", auth_time=int(time.time()) - 60)
        passed = await stage.client.get("/orders?a=b", headers=by_token.headers)
        assert (passed.status_code, passed.json()["path"]) == (200, "/orders")
        assert passed.json()["headers"]["x-lapse-session"] == by_token.reference
        forged = {**by_cookie.cookie, "x-lapse-session": "forged", "x-auth-subject": "somebody"}
        passed = await stage.client.post("/orders", content=b"a=b", headers=forged)
        assert (passed.json()["method"], passed.json()["body"]) == ("POST", "a=b")
        assert passed.json()["headers"]["x-lapse-session"] == by_cookie.reference
        assert not passed.json()["headers"].get("x-auth-subject")

        touches = {touch.session: touch for touch in await stage.touched(2)}
        assert touches.keys() == {by_token.reference, by_cookie.reference}
        assert touches[by_token.reference].subject == "u-1"
        assert {touch.service for touch in touches.values()} == {"edge"}

        await stage.writer.revoke(Revocation(id="r-1", session=by_token.reference, subject="u-1"))
        refused, after_s = await _refused(stage, by_token.headers)
        _is_problem(refused, "revoked")
        assert after_s < LIMIT_S
        await stage.writer.revoke(Revocation(id="r-2", subject="u-2"))  # by auth_time: no processor runs
        refused, after_s = await _refused(stage, by_cookie.cookie)
        _is_problem(refused, "revoked")
        assert after_s < LIMIT_S
        assert (await stage.client.post("/orders", content=b"a=b", headers=by_token.headers)).status_code == 401
        head = await stage.client.head("/orders", headers=by_token.headers)
        assert (head.status_code, head.headers["x-lapse-cause"]) == (401, "revoked")

        for path in tmp_path.rglob("*.log"):
            assert "secret-" not in path.read_text(errors="replace")
            assert by_token.token not in path.read_text(errors="replace")


@pytest.mark.proxies
async def test_what_else_a_request_may_be(proxy: Proxy, tmp_path: Path, settings: Settings) -> None:
    async with staged(proxy, tmp_path, settings) as stage:
        someone = login()
        nobody = await stage.client.get("/", headers={"x-lapse-session": "forged"})
        assert nobody.status_code == 200
        assert not nobody.json()["headers"].get("x-lapse-session")
        _is_problem(await stage.client.get("/", headers={"authorization": "Bearer no-token"}), "invalid")
        for method in ("PUT", "DELETE", "OPTIONS"):
            passed = await stage.client.request(method, "/x", content=b"body", headers=someone.headers)
            assert (passed.json()["method"], passed.json()["body"]) == (method, "body")
        large = b"x" * 300_000
        passed = await stage.client.post("/x", content=large, headers=someone.headers)
        assert len(passed.json()["body"]) == len(large)
        assert (await stage.client.head("/x", headers=someone.headers)).headers["x-service"] == "echo"
        own = await stage.client.get("/own-401", headers=someone.headers)
        assert (own.status_code, own.text, own.headers.get("x-lapse-cause")) == (401, "its own", None)


@pytest.mark.proxies
async def test_background_polling_is_no_touch(proxy: Proxy, tmp_path: Path, settings: Settings) -> None:
    async with staged(proxy, tmp_path, settings) as stage:
        poller, clicker = login(), login()
        polling = {**poller.headers, "x-lapse-background": "1"}
        assert (await stage.client.get("/news", headers=polling)).status_code == 200
        assert (await stage.client.get("/news", headers=clicker.headers)).status_code == 200
        assert [touch.session for touch in await stage.touched(1)] == [clicker.reference]


@pytest.mark.proxies
async def test_what_only_a_trusted_proxy_may_say_no_client_can(
    proxy: Proxy, tmp_path: Path, settings: Settings
) -> None:
    told = ("--cookie", "sid", "--subject-header", "X-Auth-Subject")
    async with staged(proxy, tmp_path, settings, *told) as stage:
        opaque, by_token = {"cookie": "sid=opaque"}, login()
        for forged in ({**opaque, "x-auth-subject": "somebody"}, by_token.headers):
            assert (await stage.client.get("/", headers=forged)).status_code == 200
        assert [touch.session for touch in await stage.touched(1)] == [by_token.reference]
        await stage.writer.revoke(Revocation(id="r-1", session=session_reference("opaque"), subject="u-9"))
        refused, after_s = await _refused(stage, opaque)
        _is_problem(refused, "revoked")
        assert after_s < LIMIT_S
        # Nor is an ended session hidden behind a live one.
        assert (await stage.client.get("/", headers={**opaque, **by_token.headers})).status_code == 401


@pytest.mark.proxies
async def test_an_ended_session_is_not_hidden_by_how_its_cookie_is_sent(
    proxy: Proxy, tmp_path: Path, settings: Settings
) -> None:
    async with staged(proxy, tmp_path, settings, "--cookie", "sid") as stage:
        await stage.writer.revoke(Revocation(id="r-1", session=session_reference("opaque"), subject="u-9"))
        await _refused(stage, {"cookie": "sid=opaque"})
        for lines in (
            ("theme=dark", "sid=opaque"),
            ("sid=opaque", "theme=dark"),
            ("sid=live", "sid=opaque"),
            ("sid=opaque", "sid=live"),
            ("theme=dark sid=opaque",),
        ):
            answer = await stage.client.get("/", headers=[("cookie", line) for line in lines])
            assert (answer.status_code, "x-service" in answer.headers) == (401, False), lines
        assert (await stage.client.get("/", headers={"cookie": "theme=dark; sid=live"})).status_code == 200


@pytest.mark.proxies
async def test_no_client_can_say_it_with_underscores(proxy: Proxy, tmp_path: Path, settings: Settings) -> None:
    """WSGI and CGI make the same variable of X_Auth_Subject and X-Auth-Subject."""
    async with staged(proxy, tmp_path, settings) as stage:
        for trusted in ("x-auth-subject", "x-lapse-session"):
            first, second, third = trusted.split("-")
            for spelled in (f"{first}_{second}_{third}", f"{first}_{second}-{third}", f"{first}-{second}_{third}"):
                answer = await stage.client.get("/", headers={spelled: "forged"})
                reached = answer.json()["headers"] if answer.status_code == 200 else {}
                said = [value for name, value in reached.items() if name.replace("_", "-") == trusted]
                assert not any(said), spelled
                assert answer.status_code in (200, 400), spelled


@pytest.mark.proxies
async def test_a_websocket_is_asked_about_at_its_handshake(proxy: Proxy, tmp_path: Path, settings: Settings) -> None:
    async with staged(proxy, tmp_path, settings) as stage:
        someone = login()
        url = f"ws://127.0.0.1:{stage.ports.proxy}/ws"
        async with websockets.connect(url, additional_headers=someone.cookie) as socket:
            await socket.send("hello")
            assert await socket.recv() == "echo: hello"
        assert [touch.session for touch in await stage.touched(1)] == [someone.reference]
        await stage.writer.revoke(Revocation(id="r-1", session=someone.reference, subject="u-1"))
        await _refused(stage, someone.cookie)
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(url, additional_headers=someone.cookie)
        assert refused.value.response.status_code == 401
        assert refused.value.response.headers["x-lapse-cause"] == "revoked"


@pytest.mark.proxies
async def test_a_stale_guard_follows_on_stale_by_route(proxy: Proxy, tmp_path: Path, settings: Settings) -> None:
    async with staged(proxy, tmp_path, settings, "--stale-after-ms", "3000") as stage:
        someone = login()
        assert (await stage.client.get("/pay", headers=someone.headers)).status_code == 200
        stage.writer.beats = False
        refused, _ = await _refused(stage, someone.headers, "/pay/now?to=/orders")
        _is_problem(refused, "unverified")
        assert (await stage.client.get("/orders", headers=someone.headers)).status_code == 200
        # Whatever a client adds or writes, /pay stays what it is.
        forged = {**someone.headers, "x-original-uri": "/orders", "x-forwarded-uri": "/orders"}
        for path in ("/pay", "/%70ay", "//pay", "/orders/../pay"):
            url = f"http://127.0.0.1:{stage.ports.proxy}{path}"
            assert (await stage.client.get(url, headers=forged)).status_code in (301, 307, 308, 401), path
        stage.writer.beats = True
        async with asyncio.timeout(10):
            while (await stage.client.get("/pay", headers=someone.headers)).status_code != 200:
                pass


@pytest.mark.proxies
async def test_where_a_session_is_required_there_must_be_one(proxy: Proxy, tmp_path: Path, settings: Settings) -> None:
    async with staged(proxy, tmp_path, settings, "--require-session", "--open-routes", "/login") as stage:
        _is_problem(await stage.client.get("/orders"), "missing")
        forged = {"x-original-uri": "/login", "x-forwarded-uri": "/login", "x-original-method": "OPTIONS"}
        assert (await stage.client.get("/orders", headers=forged)).status_code == 401
        assert (await stage.client.get("/login?next=/orders")).status_code == 200
        assert (await stage.client.get("/orders", headers=login().headers)).status_code == 200
        preflight = {"origin": "https://a.example", "access-control-request-method": "PUT"}
        assert (await stage.client.options("/orders", headers=preflight)).status_code == 200
        assert (await stage.client.put("/orders", headers={**preflight, **forged})).status_code == 401


@pytest.mark.proxies
async def test_without_a_sidecar_nothing_passes_until_it_is_back(
    proxy: Proxy, tmp_path: Path, settings: Settings
) -> None:
    async with staged(proxy, tmp_path, settings, down=True) as stage:
        someone = login()
        for headers in (someone.headers, {}):
            refused = await stage.client.get("/orders", headers=headers)
            assert refused.status_code == proxy.when_down
            assert "x-service" not in refused.headers
        async with stage.sidecar(), asyncio.timeout(10):
            while (await stage.client.get("/orders", headers=someone.headers)).status_code != 200:
                pass
        assert (await stage.client.get("/orders", headers=someone.headers)).status_code == proxy.when_down


@pytest.mark.proxies
@pytest.mark.parametrize("name", [name for name, each in PROXIES.items() if each.open_up is not None])
async def test_a_proxy_that_is_told_to_passes_what_it_cannot_ask_about(
    name: str, tmp_path: Path, settings: Settings
) -> None:
    proxy = PROXIES[name]
    async with staged(proxy, tmp_path, settings, opened=True) as stage:
        someone = login()
        assert (await stage.client.get("/orders", headers=someone.headers)).status_code == 200
        await stage.writer.revoke(Revocation(id="r-1", session=someone.reference, subject="u-1"))
        await _refused(stage, someone.headers)
    apart = tmp_path / "down"
    apart.mkdir()
    async with staged(proxy, apart, settings, opened=True, down=True) as stage:
        assert (await stage.client.get("/orders", headers=someone.headers)).status_code == 200
