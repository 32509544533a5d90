"""Goal: sessions of each layout are found and deleted whole, and nothing else is. Method: a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from lapse.consumers.appliers import IndexedEffect, Unavailable
from lapse.consumers.appliers.redis import LAYOUTS, Layout, RedisStore, hint
from lapse.consumers.frameworks.django_data import DATA
from lapse.schemas import ConfigError, session_reference

from tests.consumers.appliers.support import ending, nothing_appended
from tests.consumers.test_django_data import in_cache
from tests.servers import redis

PRINCIPAL = "org.springframework.session.FindByIndexNameSessionRepository.PRINCIPAL_NAME_INDEX_NAME"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
async def client(server: str) -> AsyncIterator[Any]:
    client: Any = Redis.from_url(server)
    await client.flushall()
    yield client
    await client.aclose()


async def all_ids(store: RedisStore) -> set[str]:
    return {session_id async for portion in store.walk() for session_id, _ in portion}


async def keys(client: Any) -> set[str]:
    return {key.decode() for key in await client.keys("*")}


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "spring"])
async def test_sessions_of_each_layout_are_found_and_deleted(client: Any, server: str, layout: str) -> None:
    chosen = LAYOUTS[layout]
    for session_id in ("one", "two"):
        await client.set(chosen.key(session_id), b"data")
    await client.set("unrelated", b"data")
    store = RedisStore(server, chosen)
    try:
        await store.start()
        assert await all_ids(store) == {"one", "two"}
        assert await store.delete(["one", "nobody"], {}) == 1
        assert await keys(client) == {chosen.key("two"), "unrelated"}
    finally:
        await store.stop()


async def test_thousands_of_keys_come_all_while_others_come_and_go(client: Any, server: str) -> None:
    await client.mset({f"sess:s-{number}": b"" for number in range(5_000)})
    store = RedisStore(server, LAYOUTS["connect"])
    found: set[str] = set()
    try:
        async for portion in store.walk():
            found.update(session_id for session_id, _ in portion)
            await client.mset({f"sess:new-{len(found)}-{number}": b"" for number in range(100)})
            await client.delete(f"sess:new-{len(found)}-1")
    finally:
        await store.stop()
    assert {f"s-{number}" for number in range(5_000)} <= found


@pytest.mark.parametrize("layout", ["django", "django-cached-db"])
async def test_djangos_cache_is_known_by_the_login_in_it_and_another_login_stays(
    client: Any, server: str, layout: str
) -> None:
    chosen = LAYOUTS[layout]

    async def put(key: str, session: Any) -> None:
        await client.set(chosen.key(key), in_cache(session))

    for key in ("one", "two", "three"):
        await put(key, {DATA: {"id": f"login-{key}"}})
    await put("anonymous", {"cart": []})
    effect = IndexedEffect(RedisStore(server, chosen), pass_interval_s=3_600.0)
    await effect.start(nothing_appended)
    try:
        await put("two", {DATA: {"id": "login-two-again"}})  # the same key, and another login
        await client.rename(chosen.key("three"), chosen.key("moved"))
        await effect.apply([ending("login-one"), ending("login-two"), ending("login-three"), ending("one")])
        assert await keys(client) == {chosen.key("two"), chosen.key("anonymous")}
        await effect.apply([ending("login-two-again"), ending("anonymous")])
        assert await keys(client) == set()
    finally:
        await effect.stop()


def _java(text: str) -> bytes:
    return b"\xac\xed\x00\x05t" + len(text).to_bytes(2, "big") + text.encode()


@pytest.mark.parametrize("form", [_java, str.encode], ids=["java", "plain"])
async def test_springs_other_keys_go_with_the_session(client: Any, server: str, form: Any) -> None:
    root = "spring:session:"
    seconds, micros = await client.time()
    expire_ms = seconds * 1000 + micros // 1000 + 1_800_000
    minute = -(-expire_ms // 60_000) * 60_000
    for session_id in ("one", "two"):
        await client.hset(f"{root}sessions:{session_id}", f"sessionAttr:{PRINCIPAL}", form("alice"))
        await client.expire(f"{root}sessions:{session_id}", 2_100)
        await client.set(f"{root}sessions:expires:{session_id}", b"", px=1_800_000)
        await client.sadd(f"{root}expirations:{minute}", form(f"expires:{session_id}"))
        await client.sadd(f"{root}index:{PRINCIPAL}:alice", form(session_id))
    store = RedisStore(server, LAYOUTS["spring"])
    try:
        assert await all_ids(store) == {"one", "two"}
        assert await store.delete(["one"], {}) == 1
    finally:
        await store.stop()
    assert await keys(client) == {
        f"{root}sessions:two",
        f"{root}sessions:expires:two",
        f"{root}expirations:{minute}",
        f"{root}index:{PRINCIPAL}:alice",
    }
    assert await client.smembers(f"{root}expirations:{minute}") == {form("expires:two")}
    assert await client.smembers(f"{root}index:{PRINCIPAL}:alice") == {form("two")}


async def test_wildcards_in_a_template_are_taken_as_they_are(client: Any, server: str) -> None:
    await client.mset({"a*[b]:one:x": b"", "ab:two:x": b"", "aXb:three:x": b""})
    store = RedisStore(server, Layout("a*[b]:{id}:x"))
    try:
        assert await all_ids(store) == {"one"}
    finally:
        await store.stop()


async def test_an_applications_hint_is_enough(client: Any, server: str) -> None:
    await client.set("sess:one", b"")
    await client.set(*hint("one"), ex=60)
    effect = IndexedEffect(RedisStore(server, LAYOUTS["connect"]), passes=False)
    await effect.start(nothing_appended)
    try:
        await effect.apply([ending("one"), ending("unknown")])
    finally:
        await effect.stop()
    assert await keys(client) == {f"lapse:ref:{session_reference('one')}"}
    assert effect.done == 1


async def test_a_redis_that_is_away_is_unavailable_and_comes_back(tmp_path: Path) -> None:
    with redis(tmp_path) as url:
        store = RedisStore(url, LAYOUTS["connect"])
        await store.start()
    try:
        with pytest.raises(Unavailable):
            await store.delete(["one"], {})
        with pytest.raises(Unavailable):
            await all_ids(store)
    finally:
        await store.stop()


@pytest.mark.parametrize("template", ["sess:", "{id}", "{id}{id}"])
def test_a_template_without_a_place_for_the_id_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match="template"):
        Layout(template)


def test_a_store_that_is_no_redis_is_refused() -> None:
    with pytest.raises(ConfigError, match="Redis"):
        RedisStore("http://127.0.0.1", LAYOUTS["flask"])
