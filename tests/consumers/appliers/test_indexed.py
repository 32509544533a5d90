"""Goal: no session outlives its ending in its store, whenever it came there. Method: a store in memory."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from lapse.consumers.appliers import IndexedEffect, Unavailable
from lapse.schemas import Cause, session_reference

from tests.consumers.appliers.support import MemoryStore, ending, nothing_appended
from tests.consumers.support import until


@contextlib.asynccontextmanager
async def effect_on(store: MemoryStore, ends: Any = nothing_appended, **options: Any) -> AsyncIterator[IndexedEffect]:
    effect = IndexedEffect(store, **{"pass_interval_s": 3_600.0, **options})
    await effect.start(ends)
    try:
        yield effect
    finally:
        await effect.stop()


async def test_a_session_from_before_the_start_is_deleted_at_once() -> None:
    store = MemoryStore("old", "other")
    async with effect_on(store) as effect:
        await effect.apply([ending("old")])
        assert set(store.sessions) == {"other"}
        assert (effect.done, effect.passes, effect.entries) == (1, 1, 2)


async def test_a_session_that_is_younger_than_the_index_is_found_by_a_pass_of_its_own() -> None:
    store = MemoryStore("old")
    async with effect_on(store) as effect:
        store.sessions["young"] = None
        await effect.apply([ending("young"), ending("old")])
        assert not store.sessions
        assert effect.passes == 2


async def test_a_backlog_is_worked_off_by_one_pass() -> None:
    store = MemoryStore("a")

    async def ends() -> Mapping[int, int]:
        return {0: 100, 1: 100}

    async with effect_on(store, ends) as effect:
        for number in range(50):
            await effect.apply([ending(f"gone-{number}", offset=number)])
        assert effect.passes == 1
        store.sessions["young"] = None
        await effect.apply([ending("young", offset=100)])
        assert effect.passes == 2
        assert "young" not in store.sessions


async def test_what_is_written_back_after_its_ending_is_deleted_by_the_second_look() -> None:
    store = MemoryStore("a")
    async with effect_on(store, pass_interval_s=0.05) as effect:
        await effect.apply([ending("a"), ending("late")])
        store.sessions.update(a=None, late=None, live=None)
        await until(lambda: set(store.sessions) == {"live"})


async def test_without_passes_hints_are_gone_by_and_the_second_look_knows_their_ids() -> None:
    store = MemoryStore("a", "unhinted")
    store.hinted[session_reference("a")] = "a"
    async with effect_on(store, passes=False, pass_interval_s=0.05) as effect:
        await effect.apply([ending("a"), ending("unhinted")])
        assert set(store.sessions) == {"unhinted"}
        store.sessions["a"] = None
        await until(lambda: set(store.sessions) == {"unhinted"})
        assert effect.passes == 0


async def test_a_session_that_has_moved_since_the_pass_is_found_by_another() -> None:
    store = MemoryStore(moves=True)
    store.sessions.update(before="mine", other="yours")

    async with effect_on(store, lots_appended) as effect:
        del store.sessions["before"]
        store.sessions["behind"] = "mine"
        await effect.apply([ending("mine", offset=0)])
        assert set(store.sessions) == {"other"}
        assert (effect.done, effect.passes) == (1, 2)


async def test_a_logout_that_has_deleted_its_session_itself_costs_no_pass() -> None:
    store = MemoryStore(moves=True)
    store.sessions.update(one="a", two="b")
    async with effect_on(store) as effect:
        del store.sessions["one"]
        await effect.apply([ending("a", cause=Cause.CLOSED), ending("b")])
        assert not store.sessions
        assert effect.passes == 1


async def test_a_closed_session_that_has_moved_is_left_to_the_second_look() -> None:
    store = MemoryStore(moves=True)
    store.sessions["before"] = "a"
    async with effect_on(store, pass_interval_s=0.05) as effect:
        store.sessions = {"behind": "a", "live": "b"}
        await effect.apply([ending("a", cause=Cause.CLOSED)])
        await until(lambda: set(store.sessions) == {"live"})


async def test_two_places_of_one_session_are_both_deleted_by_a_pass() -> None:
    store = MemoryStore(moves=True)
    async with effect_on(store) as effect:
        store.sessions.update(before="a", behind="a", other="b")
        await effect.apply([ending("a")])
        assert set(store.sessions) == {"other"}


async def test_a_hint_spares_the_pass() -> None:
    store = MemoryStore()
    async with effect_on(store) as effect:
        store.sessions["young"] = None
        store.hinted[session_reference("young")] = "young"
        await effect.apply([ending("young")])
        assert not store.sessions
        assert effect.passes == 1


async def test_a_hint_that_names_another_session_deletes_nothing() -> None:
    store = MemoryStore("mine", "yours")
    store.hinted[session_reference("mine")] = "yours"
    async with effect_on(store) as effect:
        await effect.apply([ending("mine")])
        assert set(store.sessions) == {"yours"}


async def test_a_key_that_is_not_the_services_is_told(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore("a")
    async with effect_on(store, lots_appended, key=b"0123456789abcdef") as effect:
        for number in range(10):
            await effect.apply([ending(f"s-{number}-{one}", offset=one) for one in range(10)])
    assert [record.message for record in caplog.records if "LAPSE_REFERENCE_KEY" in record.message]


async def lots_appended() -> Mapping[int, int]:
    """The ends of a topic in which everything stands already: one pass covers it."""
    return {0: 1_000_000}


async def test_a_store_that_is_away_is_told_and_the_same_endings_have_their_effect_later() -> None:
    store = MemoryStore("a")
    async with effect_on(store) as effect:
        store.away = True
        with pytest.raises(Unavailable):
            await effect.apply([ending("a")])
        store.away = False
        await effect.apply([ending("a")])
        assert not store.sessions


async def test_what_is_remembered_ends() -> None:
    store = MemoryStore("a")
    async with effect_on(store, pass_interval_s=0.02, memory_s=0.1) as effect:
        await effect.apply([ending("a")])
        passes = effect.passes
        await until(lambda: not effect._ended)
        store.sessions["a"] = None
        await until(lambda: effect.passes >= passes + 2)
        assert "a" in store.sessions


async def test_references_under_a_key_are_those_of_the_key() -> None:
    store = MemoryStore("a")
    async with effect_on(store, key=b"0123456789abcdef") as effect:
        await effect.apply([ending("a")])
        assert "a" in store.sessions
