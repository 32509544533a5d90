"""People who log in, click and leave, as a service reports them: the real ActivityPublisher, in a process of its own.

    python -m tests.faults.load --kafka .. --prefix .. --partitions N --truth FILE [--seed N] [--logins N] [--hot]

Until SIGTERM. Two kinds of people: `short` ones, who end all the time (idle, absolute limit, logout, revocation), and
`steady` ones, who click all the while and must never end, whatever breaks. With --hot, half of all touches are of one
subject's sessions.

What really happened is written to --truth, one JSON object a line, as instants of this machine's clock; so the verifier
can hold an ending against life and not only against the log (life.py).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import secrets
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from lapse.consumers import ActivityPublisher
from lapse.schemas import Policy, Revocation, TopicNames, encode, partition_of, subject_key

__all__ = ["SHORT", "STEADY", "STEADY_PEOPLE", "TOUCH_INTERVAL_MS"]

# A touch may wait so long in the publisher; far below the idle timeouts.
TOUCH_INTERVAL_MS: Final = 500
# Well above what a touch may take on its way on a busy machine (life.KNOWN_WITHIN_MS), so that one that was lost shows.
SHORT: Final = Policy(name="short", idle_ms=9_000, absolute_ms=14_000)
# Many times the pause between the clicks of a steady person: room for a machine that is busy with other things (with a
# load of 25 on two cores a publisher was seen to take more than 6 s for one record); and half of the outage of 30 s.
STEADY: Final = Policy(name="steady", idle_ms=15_000, absolute_ms=None)
_STEADY_PAUSE_S: Final = 1.0
STEADY_PEOPLE: Final = 40
_STEP_S: Final = 0.1


@dataclass
class _Person:
    session: str
    subject: str
    policy: str
    leaves_at: float
    started_at: float
    touched_at: list[float] = field(default_factory=list)
    closed_at: float | None = None
    revoked_at: float | None = None
    next_at: float = 0.0


class _Service:
    def __init__(self, arguments: argparse.Namespace, publisher: ActivityPublisher, orders: AIOKafkaProducer) -> None:
        self._arguments = arguments
        self._publisher = publisher
        self._orders = orders
        self._topics = TopicNames(arguments.prefix)
        self._chance = random.Random(arguments.seed)
        self._live: list[_Person] = []
        self._done: list[_Person] = []
        self._revoked: list[str] = []
        self._ordering: set[asyncio.Task[None]] = set()
        self._logins = 0.0

    async def run(self, enough: asyncio.Event) -> None:
        for number in range(STEADY_PEOPLE):
            self._login(f"steady-{number}", STEADY.name, float("inf"))
        before = time.time()
        while not enough.is_set():
            now = time.time()
            self._logins += (now - before) * self._arguments.logins
            before = now
            while self._logins >= 1:
                self._logins -= 1
                self._login(self._subject(), SHORT.name, now + self._chance.uniform(0, 8))
            for person in self._live:
                self._live_on(person, now)
            self._done += [one for one in self._live if now >= one.leaves_at]
            self._live = [one for one in self._live if now < one.leaves_at]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(enough.wait(), _STEP_S)
        stopped_at = time.time()
        flushed = await self._publisher.flush(90)
        if self._ordering:
            await asyncio.wait(self._ordering, timeout=60)
        self._write(stopped_at, flushed)

    def _subject(self) -> str:
        return "hot" if self._arguments.hot and self._chance.random() < 0.5 else f"u-{self._chance.randrange(500)}"

    def _login(self, subject: str, policy: str, leaves_at: float) -> None:
        now = time.time()
        person = _Person(secrets.token_urlsafe(16), subject, policy, leaves_at, now)
        person.next_at = now + self._chance.uniform(0.2, 1)
        self._live.append(person)
        self._publisher.started(person.session, subject, policy=policy)

    def _live_on(self, person: _Person, now: float) -> None:
        if now >= person.leaves_at:
            what = self._chance.random()
            if what < 0.15:
                self._publisher.closed(person.session, person.subject)
                person.closed_at = now
            elif what < 0.25:
                self._revoke(person, now)
        elif now >= person.next_at:
            self._publisher.touched(person.session, person.subject)
            person.touched_at.append(now)
            steady = person.policy == STEADY.name
            person.next_at = now + (_STEADY_PAUSE_S if steady else self._chance.uniform(0.2, 1.2))

    def _revoke(self, person: _Person, now: float) -> None:
        person.revoked_at = now
        order = Revocation(
            id=f"r-{person.session}", session=person.session, subject=person.subject, reason="admin", by="load"
        )
        task = asyncio.create_task(self._append(order, person))
        self._ordering.add(task)
        task.add_done_callback(self._ordering.discard)

    async def _append(self, order: Revocation, person: _Person) -> None:
        place = partition_of(person.subject, None, self._arguments.partitions)
        value, key = encode(order), subject_key(person.subject, None)
        with contextlib.suppress(KafkaError):  # not acknowledged, so nothing was promised
            await self._orders.send_and_wait(self._topics.revocations, value, key, partition=place)
            self._revoked.append(person.session)

    def _write(self, stopped_at: float, flushed: bool) -> None:
        def ms(at: float) -> int:
            return int(at * 1000)

        path: Path = self._arguments.truth
        with path.open("w") as file:
            stats = self._publisher.stats
            summary = {"stopped_at": ms(stopped_at), "flushed": flushed, "dropped": stats.dropped,
                       "touches": stats.touches, "records": stats.records, "revoked": self._revoked}  # fmt: skip
            file.write(json.dumps(summary) + "\n")
            for one in self._done + self._live:
                row = {"session": one.session, "subject": one.subject, "policy": one.policy,
                       "started_at": ms(one.started_at), "touched_at": [ms(at) for at in one.touched_at],
                       "closed_at": None if one.closed_at is None else ms(one.closed_at),
                       "revoked_at": None if one.revoked_at is None else ms(one.revoked_at)}  # fmt: skip
                file.write(json.dumps(row) + "\n")


async def _main(arguments: argparse.Namespace) -> None:
    enough = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, enough.set)
    orders = AIOKafkaProducer(bootstrap_servers=arguments.kafka, enable_idempotence=True, acks="all")
    await orders.start()
    publisher = ActivityPublisher(
        arguments.kafka, service="load", prefix=arguments.prefix, touch_interval_ms=TOUCH_INTERVAL_MS
    )
    try:
        async with publisher:
            await _Service(arguments, publisher, orders).run(enough)
    finally:
        await orders.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kafka", required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--logins", type=float, default=6.0, help="a second")
    parser.add_argument("--hot", action="store_true")
    asyncio.run(_main(parser.parse_args()))
