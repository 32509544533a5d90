"""How do a modelled worker's copies of revocations and policies get into the activity log?

As pipeline/lapse/pipeline/processor/copies.py: revocations of the partitions it owns, from the committed position on,
each to the activity partition it belongs to; all policies to each. A position moves once the copies stand in the log,
and is saved with the partition's checkpoint, so after a crash some are copied again, and a worker that stood still
copies what another has copied long since.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lapse.schemas import (
    PolicyAdopted,
    RevocationOrdered,
    encode_signed,
    parse_policy,
    parse_revocation,
    partition_of,
)

from tests.engine.records import KEY, TOPIC

if TYPE_CHECKING:
    from tests.simulation.outlets import Sent
    from tests.simulation.process import Process

__all__ = ["Copier"]

POLL_MS = 200.0


class Copier:
    """Copies for all partitions of a process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._copied: dict[int, int] = {}
        self._policies: dict[int, int] = {}
        self._under_way: set[tuple[str, int]] = set()

    def own(self, partition: int, revocations: int) -> None:
        """Begin to copy for a partition, revocations from this position on."""
        self._copied[partition] = revocations
        self._policies[partition] = 0
        self._under_way -= {("revocations", partition), ("policies", partition)}
        self.soon(partition)

    def disown(self, partition: int) -> None:
        """Copy for it no more."""
        self._copied.pop(partition, None)
        self._policies.pop(partition, None)

    def copied(self, partition: int) -> int:
        """Return the position below which all copies stand in the log."""
        return self._copied[partition]

    def soon(self, partition: int) -> None:
        """Something may be there to be copied for the partition."""
        process = self._process
        process.later(process.rng.uniform(1, POLL_MS), lambda: self._copy(partition))

    def _copy(self, partition: int) -> None:
        if partition not in self._copied:
            return
        process = self._process
        back_at = process.world.broker.back_at(process.world.now)
        if back_at is not None:
            process.later(back_at - process.world.now, lambda: self.soon(partition))
            return
        self._copy_policies(partition)
        self._copy_revocations(partition)

    def _copy_policies(self, partition: int) -> None:
        log, start = self._process.world.broker.policies, self._policies[partition]
        if ("policies", partition) in self._under_way or start == len(log):
            return
        for record in log[start:]:
            assert record.value is not None
            adopted = PolicyAdopted(version=record.offset, policy=parse_policy(record.value))
            value = encode_signed(adopted, topic=TOPIC, partition=partition, key=KEY)
            last = record.offset == len(log) - 1
            self._append(partition, value, ("policies", partition) if last else None, len(log))

    def _copy_revocations(self, partition: int) -> None:
        world = self._process.world
        log, start = world.broker.revocations[partition], self._copied[partition]
        if ("revocations", partition) in self._under_way or start == len(log):
            return
        for record in log[start:]:
            assert record.value is not None
            revocation = parse_revocation(record.value)
            ordered = RevocationOrdered(at=record.timestamp, revocation=revocation)
            to = partition
            if revocation.subject is not None:
                to = partition_of(revocation.subject, revocation.tenant, world.plan.partitions)
            value = encode_signed(ordered, topic=TOPIC, partition=to, key=KEY)
            last = record.offset == len(log) - 1
            self._append(to, value, ("revocations", partition) if last else None, len(log))

    def _append(self, to: int, value: bytes, last_of: tuple[str, int] | None, position: int) -> None:
        process = self._process
        append = process.health.sent(process.mono())
        if last_of is not None:
            self._under_way.add(last_of)

        def stands(sent: Sent) -> None:
            process.health.acknowledged(append, process.mono())
            if last_of is not None:
                process.reach("copied", last_of[1], lambda: self._moved(last_of, position))

        process.control.send("activity", to, [(None, value)], stands)

    def _moved(self, what: tuple[str, int], position: int) -> None:
        kind, partition = what
        self._under_way.discard(what)
        positions = self._copied if kind == "revocations" else self._policies
        if partition in positions:
            positions[partition] = max(positions[partition], position)
            self.soon(partition)
