"""Goal: a flood of random session ids costs memory up to a bound and nobody's session; no revocation is lost in it.

Method: a worker with a small `LAPSE_SESSIONS_MAX` on three brokers; sessions of real publishers and of a writer that
go on all the while; then two million ids in rounds, each id once, half as logins and half as touches of sessions that
nobody has heard of. After each round, when all of it has been applied, the worker's memory is read: a bound that did
not hold would show as a slope, 0.4 KB an id. In every round sessions are revoked: some that are live, and some that
have not been seen yet and log in after the flood. FAULTS_FLOOD_IDS names another number of ids.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import threading
import time
from pathlib import Path
from typing import Final

import orjson
import pytest
from confluent_kafka import Producer

from lapse.schemas import Policy, TopicNames, ending_id

from tests.faults.cluster import Cluster
from tests.faults.estate import PARTITIONS, Estate, estate_on, until
from tests.faults.load import STEADY_PEOPLE
from tests.faults.metrics import Metrics
from tests.faults.reporting import note
from tests.faults.states import differences, read_state, read_topic
from tests.integration._raw import JSON

FLOOD_IDS: Final = int(os.environ.get("FAULTS_FLOOD_IDS", "2000000"))
ROUNDS: Final = 10
BOUND: Final = 5_000  # live sessions of each partition
KEPT_IDLE_MS: Final = 20_000
KEPT: Final = Policy(name="kept", idle_ms=KEPT_IDLE_MS, absolute_ms=None)
KEPT_SESSIONS: Final = 600
REVOKED_A_ROUND: Final = 20
KEPT_PAUSE_S: Final = 1.0
# From the second round on, when every buffer has been as full as it gets. Two million remembered ids would be 800 MB.
GROWTH_MAX_MIB: Final = 32
# Applying waits for nothing but the machine: some 20,000 ids a second where it is busy with much else.
APPLIED_WITHIN_S: Final = 300.0


class Keeper:
    """People of our own whose every touch is acknowledged; each has one session."""

    def __init__(self, estate: Estate) -> None:
        self._estate = estate
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._touch_all, name="keeper")
        self.live = [_name() for _ in range(KEPT_SESSIONS)]
        self.last_touch_at = 0

    def __enter__(self) -> Keeper:
        starts = [_activity("started", name, policy=KEPT.name) for name in self.live]
        self._estate.writer.activities(starts)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Let everybody go: their sessions end as idle."""
        self._enough.set()
        self._thread.join()

    def revoke(self, count: int) -> list[str]:
        """Revoke some that are live, and as many that nobody has seen; return their names."""
        known, self.live = self.live[:count], self.live[count:]
        names = known + [_name() for _ in range(count)]
        for name in names:
            self._estate.writer.revoke(
                {"type": "revocation", "id": f"r-{name}", "session": name, "subject": f"u-{name}",
                 "reason": "admin", "by": "flood"}
            )  # fmt: skip
        return names

    def _touch_all(self) -> None:
        while not self._enough.wait(KEPT_PAUSE_S):
            # Not held against the schema like the logins: 600 of that a second would leave no time for the flood.
            touches = [_activity("touched", name) for name in self.live]
            records = [(orjson.dumps(one), one["subject"].encode(), None) for one in touches]
            stored = self._estate.writer.append_all("activity", records)
            self.last_touch_at = min(one.stamp for one in stored)


def _name() -> str:
    return secrets.token_urlsafe(16)


def _activity(what: str, name: str, **more: str) -> JSON:
    record = {"type": f"session.{what}", "session": name, "subject": f"u-{name}", "service": "web", "age_ms": 0}
    return record | more


def await_told_of(metrics: Metrics, ids: int, before: int, ended: int) -> None:
    """Wait until each of so many ids has been taken in or refused, once, and so many sessions have ended."""
    deadline = time.monotonic() + APPLIED_WITHIN_S
    while True:
        now = metrics.sums()
        taken = now["lapse_live_sessions"] + ended - before
        if (taken + now.get("sessions_refused_full", 0), now.get("lapse_endings_total", 0)) == (ids, ended):
            return
        assert time.monotonic() < deadline, f"{ids} ids, {ended} endings, {before} sessions before: {now}"
        time.sleep(0.1)


def flood(estate: Estate, count: int) -> None:
    """Append so many ids that have never been and will never be again."""
    producer = Producer(
        {"bootstrap.servers": estate.settings.kafka, "acks": "all", "partitioner": "murmur2_random", "linger.ms": 20,
         "queue.buffering.max.messages": 200_000, "log_level": 0}
    )  # fmt: skip
    topic = f"{estate.settings.prefix}activity"
    for number in range(count):
        name = secrets.token_hex(16)
        what = "started" if number % 2 else "touched"
        value = f'{{"type":"session.{what}","session":"{name}","subject":"f-{name}","service":"web","age_ms":0}}'
        while True:
            try:
                producer.produce(topic, value.encode(), f"f-{name}".encode())
                break
            except BufferError:
                producer.poll(0.1)
        if number % 1_000 == 0:
            producer.poll(0)
    assert producer.flush(120) == 0


@pytest.mark.faults
def test_a_flood_of_random_ids(cluster: Cluster, tmp_path: Path) -> None:
    with estate_on(cluster.bootstrap, tmp_path, sessions_max=BOUND) as estate:
        estate.writer.policy({"type": "policy", **KEPT.model_dump(include={"name", "idle_ms", "absolute_ms"})})
        flooded(estate)


def flooded(estate: Estate) -> None:
    metrics = Metrics()
    worker = estate.worker("w-1")
    variables = metrics.variables | {"LAPSE_SESSIONS_MAX": str(BOUND)}
    worker.start(**variables)
    estate.owned_by("w-1")
    estate.load(seed=51, logins=0)
    with Keeper(estate) as keeper:
        before = KEPT_SESSIONS + STEADY_PEOPLE
        until(lambda: metrics.sums()["lapse_live_sessions"] == before, "everybody has logged in")
        revoked: list[str] = []
        memory_kib: list[int] = []
        began = time.monotonic()
        for round_ in range(1, ROUNDS + 1):
            revoked += keeper.revoke(REVOKED_A_ROUND)
            flood(estate, FLOOD_IDS // ROUNDS)
            await_told_of(metrics, FLOOD_IDS // ROUNDS * round_, before, REVOKED_A_ROUND * round_)
            memory_kib.append(worker.memory_kib)
        took_s = time.monotonic() - began
        counts = metrics.sums()
        growth_mib = (max(memory_kib[2:]) - memory_kib[1]) / 1024
        assert growth_mib < GROWTH_MAX_MIB, memory_kib
        assert counts["lapse_live_sessions"] == BOUND * PARTITIONS
        assert "sessions are refused" in worker.log

        # What has been ordered survives a crash; and who logs in after it is known to be revoked, however full it is.
        worker.kill()
        worker.start(**variables)
        until(lambda: metrics.answers() and metrics.sums()["lapse_partitions_owned"] == PARTITIONS, "started again")
        unseen = sorted(set(revoked) - _endings(estate).keys())
        assert len(unseen) == REVOKED_A_ROUND * ROUNDS
        estate.writer.activities([_activity("started", name) for name in unseen])
        until(lambda: set(revoked) <= _endings(estate).keys(), "whoever was revoked has ended")
        keeper.stop()
        stopped_at = keeper.last_touch_at
    estate.end_load()
    people = _people(estate)
    until(lambda: set(keeper.live) | people <= _endings(estate).keys(), "everybody else has ended")
    _check(estate, set(revoked), set(keeper.live), people, stopped_at)
    differing = asyncio.run(_differing(estate))
    assert not differing, differing
    note(
        f"flood of {FLOOD_IDS} random ids, {BOUND} sessions a partition at most",
        {"s": round(took_s, 1), "refused": counts["sessions_refused_full"], "live": counts["lapse_live_sessions"],
         "memory_mib": [one // 1024 for one in memory_kib], "growth_mib": round(growth_mib, 1),
         "revoked": len(revoked), "kept": len(keeper.live) + len(people)},
    )  # fmt: skip
    assert worker.stop() == 0


def _endings(estate: Estate) -> dict[str, list[JSON]]:
    """Return all that has been told of each session's ending."""
    found: dict[str, list[JSON]] = {}
    for record in estate.expiries.to_end():
        if (value := record.json)["type"] == "session.ended":
            found.setdefault(value["session"], []).append(value)
    return found


def _people(estate: Estate) -> set[str]:
    """Return the sessions of the real publishers, of whom nobody left before the end."""
    lines = (estate.directory / "truth.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["flushed"]
    assert json.loads(lines[0])["dropped"] == 0
    return {json.loads(line)["session"] for line in lines[1:]}


def _check(estate: Estate, revoked: set[str], kept: set[str], people: set[str], stopped_at: int) -> None:
    """Each has one ending, told alike each time: of its revocation, or as idle after all use."""
    for session, told in _endings(estate).items():
        assert all(one == told[0] for one in told), told
        ending = told[0]
        assert ending["id"] == ending_id(session)
        if session in revoked:
            assert (ending["cause"], ending["revocation"]) == ("revoked", f"r-{session}"), ending
        else:
            assert session in kept | people, ending
            assert ending["cause"] == "idle", ending
            assert ending["decided_at"] >= ending["due_at"], ending
        if session in kept:
            assert ending["due_at"] >= stopped_at + KEPT_IDLE_MS, ending


async def _differing(estate: Estate) -> list[str]:
    settings = estate.settings
    saved = await read_state(settings)
    return differences(settings, saved, await read_topic(settings, TopicNames(settings.prefix).activity, PARTITIONS))
