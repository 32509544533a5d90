"""Was what stands in the topics right? Checks of a finished run that need no truth: logs against logs.

The activity log decides, so an engine that reads it once, from its start, alone and undisturbed (`Replay`), says what
everybody must have said. Against it:

* one ending a session, of one id, the same bytes however often it was published; none lacks, none is there besides;
* warnings and violations likewise: what was said is what the replay says;
* a watermark stands behind every ending that it vouches for;
* a checkpoint: its state is the replay's at that offset; its position is the state's; positions never fall; all that
  was brought about below it (endings, forwarded records) and all revocations below its position stood before it;
* at the end each partition has one owner, that has read its log, ticks, and has saved what is older than some seconds.

With the append clock, the plain oracle of the rules (tests/engine/oracle.py) must say the same as the replay; what
people truly did is held against all of it in truth.py.
"""

from __future__ import annotations

from typing import Any

import orjson

from lapse.pipeline.engine import Effects, PartitionEngine
from lapse.pipeline.processor.checkpoints import EPOCH_KEY
from lapse.schemas import SessionEnded, SessionExpiring, Violation, encode, ending_id

from tests.engine.oracle import Oracle
from tests.engine.oracle_facts import OracleEffects
from tests.engine.records import assert_same
from tests.simulation.broker import Commit
from tests.simulation.truth import check_truth
from tests.simulation.world import World

__all__ = ["Replay", "check"]

SAVED_WITHIN_MS = 7_000.0
"""Two intervals of checkpoints, and what one takes."""
TICKED_WITHIN_MS = 2_500.0


class Replay:
    """One partition's log, read once from its start.

    Attributes:
        said: by topic and bytes, what was said, and the offset of the record that settled it.
        forwards: (offset, index) of each record that was handed out.
    """

    def __init__(self, world: World, partition: int) -> None:
        self.world = world
        self.partition = partition
        self.log = world.broker.activity[partition]
        # Always the engine as it is: a world may be run with another one, which this one is to tell from it.
        self.engine = PartitionEngine(world.settings[partition])
        self.effects = Effects()
        self.said: dict[tuple[str, bytes], int] = {}
        self.forwards: list[tuple[int, int | None, int]] = []
        self._commits = {commit.offset: commit for commit in _sample(world.broker.commits[partition])}
        self._state: dict[bytes, bytes | None] = {}
        self._differences: dict[int, str] = {}
        for record in self.log:
            self._compare()
            self._note(self.engine.apply([record]), record.offset)
        self._compare()

    def _note(self, effects: Effects, offset: int) -> None:
        for ending in effects.endings:
            self._say("expiries", ending, ending.evidence.offset)
        for warning in effects.warnings:
            self._say("warnings", warning, offset)
        for violation in effects.violations:
            self._say("violations", violation, offset)
        self.forwards += [(*forward.record["forwarded"][1:3], forward.partition) for forward in effects.forwards]
        for name in ("endings", "warnings", "violations", "dead_letters", "forwards"):
            getattr(self.effects, name).extend(getattr(effects, name))

    def _say(self, topic: str, record: SessionEnded | SessionExpiring | Violation, offset: int) -> None:
        self.said[topic, encode(record)] = offset

    def _compare(self) -> None:
        """Hold the state against the checkpoint of this offset, until one matches.

        More than one reading stops at an offset where records wait: their first may have moved the stamp already.
        """
        commit = self._commits.get(self.engine.offset)
        if commit is None:
            return
        for key, value in self.engine.cut().records:
            self._state[key] = value
        ours = {key: value for key, value in self._state.items() if value is not None}
        saved = {key: value for key, value in commit.state.items() if value is not None and key != EPOCH_KEY}
        self._differences[commit.offset] = _differences(saved, ours)
        if saved == ours:
            del self._commits[commit.offset]

    def check_all_compared(self) -> None:
        """Assert that each checkpoint in the sample is the state at its offset."""
        for offset, commit in self._commits.items():
            what = self._differences.get(offset, "no reading stops there")
            raise AssertionError(
                f"state: {self.partition} saved at {offset} by {commit.worker}, not by the log: {what}"
            )


def _sample(commits: list[Commit]) -> list[Commit]:
    """Return some checkpoints that include the last: each comparison costs a whole cut."""
    return commits if len(commits) <= 4 else [*commits[:: len(commits) // 3 + 1], commits[-1]]


def _differences(saved: dict[bytes, bytes], ours: dict[bytes, bytes]) -> str:
    keys = [key for key in saved.keys() | ours.keys() if saved.get(key) != ours.get(key)]
    return "; ".join(f"{key!r}: {saved.get(key)!r} not {ours.get(key)!r}"[:600] for key in sorted(keys))


def check(world: World) -> None:
    """Assert all of it, and the truth.

    Raises:
        AssertionError: something is not as it must be; its first word says which check.
    """
    replays = [Replay(world, number) for number in range(world.plan.partitions)]
    endings: dict[str, dict[str, Any]] = {}
    for replay in replays:
        endings |= _check_said(world, replay)
        _check_checkpoints(world, replay)
    for replay in replays:
        if world.plan.clock == "append":
            _check_oracle(world, replay)
        _check_converged(world, replay)
    check_truth(world, endings)


def _check_said(world: World, replay: Replay) -> dict[str, dict[str, Any]]:
    """Assert that what stands in the topics is what the replay says; return the endings by session reference."""
    number, said = replay.partition, world.broker.said
    first: dict[bytes, bytes] = {}
    vouched = -1
    for record in said["expiries"][number]:
        assert record.value is not None
        assert record.key is not None
        value = orjson.loads(record.value)
        if record.key == b"watermark":
            vouched = max(vouched, value["as_of"])
            continue
        known = first.get(record.key)
        if known is None:
            first[record.key] = record.value
            assert value["decided_at"] >= vouched, f"watermark: {vouched} stood before {record.value!r}"
            assert value["id"] == ending_id(value["session"]), f"id: {record.value!r}"
        assert known in (None, record.value), f"bytes: {record.value!r} was said before as {known!r}"
    for topic in ("expiries", "warnings", "violations"):
        ours = {value for name, value in replay.said if name == topic}
        theirs = {r.value for r in said[topic][number] if r.key != b"watermark" and r.value is not None}
        assert theirs <= ours, f"said: {topic}-{number} has {_some(theirs - ours)}, not by the log"
        assert ours <= theirs, f"said: {topic}-{number} lacks {_some(ours - theirs)}"
    assert not said["dead-letters"][number], f"letters: {_some({r.value for r in said['dead-letters'][number]})}"
    return {value["session"]: value for value in map(orjson.loads, first.values())}


def _some(values: set[Any]) -> str:
    return ", ".join(sorted(map(repr, values))[:3])


def _check_checkpoints(world: World, replay: Replay) -> None:
    number, broker = replay.partition, world.broker
    replay.check_all_compared()
    stands: dict[bytes, int] = {}
    for record in broker.said["expiries"][number]:
        assert record.value is not None
        stands.setdefault(record.value, record.offset)
    forwarded = _forwarded_at(world, number)
    copied = _copied_at(world, number)
    before = (0, 0)
    for commit in broker.commits[number]:
        marker = orjson.loads(commit.state[b"m"] or b"")
        assert marker["offset"] == commit.offset, f"position: {number} is committed at {commit.offset}, {marker}"
        position = (commit.offset, commit.revocations)
        assert min(a - b for a, b in zip(position, before, strict=True)) >= 0, f"position: {position} after {before}"
        before = position
        for (topic, value), offset in replay.said.items():
            if topic == "expiries" and offset < commit.offset:
                assert stands[value] < commit.expiries, f"order: {number} was saved at {commit.offset} before {value!r}"
        for offset, index, to in replay.forwards:
            if offset < commit.offset:
                at = forwarded.get((offset, index))
                assert at is not None, (
                    f"order: {number} was saved at {commit.offset}, {offset} is not forwarded to {to}"
                )
                assert at <= commit.t, f"order: {number} was saved at {commit.offset} before {offset} was forwarded"
        for record in broker.revocations[number][: commit.revocations]:
            id = orjson.loads(record.value or b"")["id"]
            assert copied.get(id, commit.t + 1) <= commit.t, f"order: {number} was saved before {id} was copied"


def _forwarded_at(world: World, origin: int) -> dict[tuple[int, int | None], float]:
    """Return when what was found in a partition first stood in the right one, by offset and index."""
    at: dict[tuple[int, int | None], float] = {}
    for log in world.broker.activity:
        for record in log:
            if record.value is not None and b'"forwarded"' in record.value:
                found_in, offset, index, _ = orjson.loads(record.value)["forwarded"]
                if found_in == origin:
                    at.setdefault((offset, index), record.t)
    return at


def _copied_at(world: World, found_in: int) -> dict[str, float]:
    """Return when each order of a partition was first copied to where it belongs."""
    at: dict[str, float] = {}
    for number, log in enumerate(world.broker.activity):
        for record in log:
            if record.value is not None and b"revocation.ordered" in record.value:
                order = orjson.loads(record.value)["revocation"]
                if order["subject"] is not None or number == found_in:
                    at.setdefault(order["id"], record.t)
    return at


def _check_oracle(world: World, replay: Replay) -> None:
    """Assert that the plain oracle says what the replay says, record by record."""
    oracle, expected = Oracle(replay.engine.settings), OracleEffects()
    for record in replay.log:
        expected.extend(oracle.apply([record]))
    replay.effects.ticked = expected.ticked
    assert_same(replay.effects, expected, f"oracle: partition {replay.partition}")
    assert not oracle.live, f"oracle: {sorted(oracle.live)} live on"


def _check_converged(world: World, replay: Replay) -> None:
    number, log = replay.partition, replay.log
    owners = [p.owners[number] for p in world.processes.values() if p.alive and number in p.owners]
    assert len(owners) == 1, f"stuck: {number} has {len(owners)} owners"
    (owner,) = owners
    assert world.group.assigned[number] is owner.process, f"stuck: {number} has an owner that the group does not know"
    settled = [record for record in log if record.t < world.now - 1000]
    assert owner.engine.offset >= len(settled), f"stuck: {number} has read to {owner.engine.offset} of {len(log)}"
    assert owner.engine.live_sessions == replay.engine.live_sessions == 0, f"resurrection: {number} has live sessions"
    ticks = [record.t for record in log if record.value is not None and b"clock.tick" in record.value]
    assert max(ticks, default=0.0) > world.now - TICKED_WITHIN_MS, f"stuck: {number} is not ticked"
    saved = world.broker.positions[number][0]
    old = [record for record in log if record.t < world.now - SAVED_WITHIN_MS]
    assert saved >= len(old), f"stuck: {number} is saved to {saved} of {len(log)}"
