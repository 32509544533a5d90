"""How much does `lapse apply django` need for a pass over the session table, and for the endings of what it knows?

A SQLite file with so many rows as Django writes them: a login by Lapse's middleware in each, compressed JSON of some
hundred bytes. `pass` reads every row, decodes it, hashes the login's id and keeps the index; the baseline is the same
reading without any of that. `deletion` ends sessions that the index has, in the batches of an applier; its baseline is
the bare statement by the primary key, in transactions of the same size. `index_bytes` is what the index keeps of one
session (tracemalloc, in a pass of its own). Both are processor time: how long a busy machine lets the process wait says
nothing of the applier. `seconds` is the pass by the clock on the wall.
"""

from __future__ import annotations

import base64
import json
import secrets
import sqlite3
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Mapping
from pathlib import Path

from lapse.consumers.appliers import Ending, IndexedEffect
from lapse.consumers.appliers.applier import BATCH_MAX
from lapse.consumers.appliers.databases import Database, connect
from lapse.consumers.appliers.django import DjangoStore
from lapse.schemas import SessionEnded, parse_expiry, session_reference

from benchmarks.endings import ending_values
from benchmarks.report import report, say

__all__ = ["run"]

SESSIONS = 200_000
ENDINGS = 20_000
_NOW_AT = 1_800_000_000_000
_READ = (
    "SELECT session_key, session_data FROM django_session WHERE session_key > :after ORDER BY session_key LIMIT :count"
)


async def run() -> None:
    """`applier_pass` and `applier_deletion`."""
    say(f"appliers: {SESSIONS} sessions in SQLite")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "db.sqlite3"
        ids = _fill(path)
        database = connect(f"sqlite:///{path}")
        effect = IndexedEffect(DjangoStore(database), pass_interval_s=3_600.0)
        try:
            bare_s = await _read_all(database)
            began_at, worked_s = time.perf_counter(), time.process_time()
            await effect.start(_nothing_appended)
            pass_s, worked_s = time.perf_counter() - began_at, time.process_time() - worked_s
            assert effect.entries == SESSIONS, "the pass has missed sessions"
            bare_deletion_s = await _delete_bare(database, path)
            endings = _endings(ids[:ENDINGS])
            began_at = time.process_time()
            for first in range(0, ENDINGS, BATCH_MAX):
                await effect.apply(endings[first : first + BATCH_MAX])
            deletion_s = time.process_time() - began_at
            assert (effect.done, effect.passes) == (ENDINGS, 1), "sessions that the index has were not there"
            index_bytes = await _index_bytes(f"sqlite:///{path}")
        finally:
            await effect.stop()
    report(
        "applier_pass", worked_s / SESSIONS * 1e6, "us of processor a session", bare_s / SESSIONS * 1e6,
        sessions=SESSIONS, seconds=pass_s, index_bytes=index_bytes, baseline_is="reading the same rows",
    )  # fmt: skip
    report(
        "applier_deletion", deletion_s / ENDINGS * 1e6, "us of processor a session", bare_deletion_s / ENDINGS * 1e6,
        endings=ENDINGS, batch=BATCH_MAX, baseline_is="the bare statement by the primary key",
    )  # fmt: skip


def _fill(path: Path) -> list[str]:
    """Make the table, with a login in each row; return the logins' ids. Another ENDINGS rows are for the baseline."""
    ids = [secrets.token_urlsafe(16) for _ in range(SESSIONS)]
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE django_session (session_key varchar(40) PRIMARY KEY, session_data text)")
        connection.executemany(
            "INSERT INTO django_session VALUES (?, ?)", ((secrets.token_hex(16), _data(one)) for one in ids)
        )
        connection.execute("CREATE TABLE bare (session_key varchar(40) PRIMARY KEY, session_data text)")
        connection.execute("INSERT INTO bare SELECT * FROM django_session")
    connection.close()
    return ids


def _data(login: str) -> str:
    """Return `session_data` as django.core.signing writes it; the signature is of the right length and nothing else."""
    told = {
        "_auth_user_id": "42",
        "_auth_user_backend": "django.contrib.auth.backends.ModelBackend",
        "_auth_user_hash": secrets.token_hex(32),
        "_lapse": {"id": login, "tenant": None, "at": 1_764_000_000_000},
    }
    packed = base64.urlsafe_b64encode(zlib.compress(json.dumps(told, separators=(",", ":")).encode()))
    return f".{packed.decode().rstrip('=')}:1vNaGm:{secrets.token_urlsafe(32)}"


async def _read_all(database: Database) -> float:
    began_at = time.process_time()
    after = ""
    while rows := await database.read(_READ, [{"after": after, "count": 500}]):
        after = rows[-1][0]
    return time.process_time() - began_at


async def _delete_bare(database: Database, path: Path) -> float:
    rows = await database.read("SELECT session_key FROM bare LIMIT :count", [{"count": ENDINGS}])
    keys = [{"session_key": row[0]} for row in rows]
    began_at = time.process_time()
    for first in range(0, ENDINGS, BATCH_MAX):
        await database.write("DELETE FROM bare WHERE session_key = :session_key", keys[first : first + BATCH_MAX])
    return time.process_time() - began_at


def _endings(ids: list[str]) -> list[Ending]:
    made = []
    values = (value for _, _, value in ending_values(len(ids), _NOW_AT))
    for offset, (value, one) in enumerate(zip(values, ids, strict=True)):
        ended = parse_expiry(value)
        assert isinstance(ended, SessionEnded)
        made.append(Ending(ended.model_copy(update={"session": session_reference(one)}), 0, offset, value))
    return made


async def _index_bytes(url: str) -> float:
    effect = IndexedEffect(DjangoStore(connect(url)), pass_interval_s=3_600.0)
    tracemalloc.start()
    await effect.start(_nothing_appended)
    kept = tracemalloc.get_traced_memory()[0] / effect.entries
    tracemalloc.stop()
    await effect.stop()
    return kept


async def _nothing_appended() -> Mapping[int, int]:
    return {}
