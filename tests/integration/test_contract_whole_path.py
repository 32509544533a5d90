"""Goal: what one service tells of, another one refuses: from a touch over the log and the processor to a check.

Method: a publisher in the place of a shop and guards in the place of its billing, each in a task of its own, that share
nothing but the broker; a real worker and the real program for orders. Nothing is timed: what must come before what is
read from the decisions and from the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from lapse.consumers import ActivityPublisher, Cause, Decision, Ended, Guard

from tests.brokers import Broker
from tests.integration._estate import Estate, estate_on, session_names
from tests.integration._raw import PATIENCE_S

pytestmark = pytest.mark.broker

# Far longer than the shop's touches are apart on a busy machine.
STEADY = {"type": "policy", "name": "steady", "idle_ms": 4_000, "absolute_ms": None}


@pytest.fixture(scope="module")
def estate(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Estate]:
    with estate_on(broker, tmp_path_factory.mktemp("path"), STEADY) as made:
        yield made


def guard_of(estate: Estate, **options: Any) -> Guard:
    return Guard(estate.bootstrap, service="billing", prefix=estate.prefix, **options)


@asynccontextmanager
async def shop_of(estate: Estate) -> AsyncIterator[ActivityPublisher]:
    shop = ActivityPublisher(estate.bootstrap, service="shop", prefix=estate.prefix, touch_interval_ms=100)
    async with shop:
        yield shop


async def refusal(guard: Guard, session: str) -> Decision:
    """Ask like a service at each request, until it refuses; return the decision."""
    async with asyncio.timeout(PATIENCE_S):
        while decision := guard.check(session, on_stale="allow"):  # noqa: ASYNC110  # another process's doing
            await asyncio.sleep(0.01)
    return decision


async def touching(shop: ActivityPublisher, session: str, subject: str) -> None:
    while True:
        shop.touched(session, subject)
        await asyncio.sleep(0.05)


async def ending_of(estate: Estate, session: str) -> dict[str, Any]:
    (ending,) = await asyncio.to_thread(estate.endings, session)
    return ending


async def test_who_goes_is_refused_while_who_stays_is_not(estate: Estate) -> None:
    goes, stays = session_names(2)
    ended: list[Ended] = []
    async with guard_of(estate, on_stale="deny") as billing, shop_of(estate) as shop:
        billing.on_ended(ended.append)
        shop.started(goes, "u-1", policy="brief")
        shop.started(stays, "u-1", policy="steady")
        here = asyncio.create_task(touching(shop, stays, "u-1"))
        gone = await asyncio.create_task(refusal(billing, goes))
        assert (gone.cause, gone.stale) == (Cause.IDLE, False)
        assert stays not in estate.ended()
        assert billing.check(stays, on_stale="allow")
        here.cancel()
        left = await asyncio.create_task(refusal(billing, stays))
    for session, decision in ((goes, gone), (stays, left)):
        ending = await ending_of(estate, session)
        assert (decision.cause, decision.due_at, decision.ending) == (Cause.IDLE, ending["due_at"], ending["id"])
        assert decision.deny_until == ending["deny_until"]
        # Counted from the last touch that stands in the log, whatever the shop joined on the way.
        assert ending["last_seen_at"] == max(await asyncio.to_thread(told_of, estate, session))
    assert [(one.session, one.cause) for one in ended] == [(goes, Cause.IDLE), (stays, Cause.IDLE)]
    assert gone.due_at is not None
    assert left.due_at is not None
    assert gone.due_at < left.due_at


def told_of(estate: Estate, session: str) -> list[int]:
    """Return the instants at which the log has the session's starts and touches, single or packed."""
    instants = []
    for record in estate.activity.to_end():
        value = record.json
        if value["type"] == "touches":
            instants += [record.stamp - entry[3] for entry in value["touches"] if entry[0] == session]
        elif value.get("session") == session:
            instants.append(record.stamp - value["age_ms"])
    return instants


async def test_who_logs_out_of_the_shop_is_refused_in_billing(estate: Estate) -> None:
    (session,) = session_names(1)
    heard: asyncio.Queue[Ended] = asyncio.Queue()
    async with guard_of(estate) as billing, shop_of(estate) as shop:
        shop.started(session, "u-2", tenant="acme", policy="office", attributes={"role": "admin"})
        shop.touched(session, "u-2", tenant="acme")
        assert await shop.flush(PATIENCE_S)
        assert billing.check(session)
        hook = billing.on_ended(heard.put_nowait, session, subject="u-2", tenant="acme")
        shop.closed(session, "u-2", tenant="acme")
        async with asyncio.timeout(PATIENCE_S):
            told = await heard.get()
        assert not billing.check(session)
        hook.cancel()
    ending = await ending_of(estate, session)
    assert (told.session, told.cause, told.ending) == (session, Cause.CLOSED, ending["id"])
    assert (ending["tenant"], ending["cause"], ending["policy"]) == ("acme", "closed", "office")


async def test_who_is_revoked_is_refused_also_where_no_processor_has_spoken_yet(estate: Estate) -> None:
    """The guard has it from the order itself; the processor's ending follows and joins it."""
    session, other = session_names(2)
    heard: list[Ended] = []
    async with guard_of(estate) as billing, shop_of(estate) as shop:
        for one in (session, other):
            shop.started(one, "u-3", policy="office")
        assert await shop.flush(PATIENCE_S)
        billing.on_ended(heard.append)
        order = ["revoke", "session", session, "--subject", "u-3", "--reason", "admin"]
        (row,) = await asyncio.to_thread(estate.lapse, *order)
        decision = await refusal(billing, session)
        assert (decision.cause, decision.revocation) == (Cause.REVOKED, row["id"])
        ending = await ending_of(estate, session)
        async with asyncio.timeout(PATIENCE_S):
            while billing.check(session).ending is None:  # noqa: ASYNC110  # another process's doing
                await asyncio.sleep(0.01)
        assert billing.check(session).ending == ending["id"]
        assert billing.check(session).revocation == ending["revocation"] == row["id"]
        assert billing.check(other)
        assert [one.session for one in heard] == [session]


async def test_a_service_that_starts_later_refuses_them_all_from_its_first_check(estate: Estate) -> None:
    await asyncio.to_thread(estate.read("expiries").to_end)
    endings = [one.json for one in estate.ended().values()]
    assert {one["cause"] for one in endings} >= {"idle", "closed", "revoked"}
    async with guard_of(estate) as late:
        for ending in endings:
            decision = late.check(ending["session"])
            said = (decision.cause, decision.due_at, decision.ending)
            assert said == (ending["cause"], ending["due_at"], ending["id"])
            # An order is kept for the longest session life, which may be longer.
            assert (decision.deny_until or 0) >= ending["deny_until"]
        assert late.check(session_names(1)[0])
        assert late.fresh


def test_every_ending_stands_the_audit(estate: Estate) -> None:
    """In it: an idle session is ended by the first record that could, and no watermark runs ahead of an ending."""
    estate.audit()
    assert estate.read("dead-letters").to_end() == []
    assert estate.read("violations").to_end() == []
