"""Was any session ended that was not over, and did any go on that was? The audit of what the topics say.

It takes the raw records of activity, revocations, policies and expiries, works out by itself which sessions had to end
(walk.py), and compares that with what was published:

    early     a published ending of a session that was not over by the rules at its `decided_at`, with another cause or
              due instant than the rules give, appended before it was due, or told twice with different content
    missed    a session that has been over, or covered by a revocation, for longer than MISSED_AFTER_MS when the
              reading ended, without an ending

The end of the reading is the latest append time of any record in any of the topics, so that a partition that fell
silent hides nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from lapse.pipeline.demo.ordered import OrderedPolicy, OrderedRevocation, covers
from lapse.pipeline.demo.walk import EndedBy, Expected, LogRecord, Rules, Walk
from lapse.schemas import BadRecord, Cause, SessionEnded, parse_expiry, parse_policy, parse_revocation, partition_of

__all__ = ["MISSED_AFTER_MS", "Finding", "Published", "RawTopics", "TopicRecord", "Verdict", "published", "recompute"]

MISSED_AFTER_MS: Final = 2_000
"""An ending is due in the log 400 ms after its session (250 of it grace), so one that is not there after five times as
long is not late, it is missing; and what is younger than that when the demo stops may still be on its way."""


class TopicRecord(LogRecord, Protocol):
    """What is read of a record of several partitions; aiokafka's ConsumerRecord has it."""

    @property
    def partition(self) -> int: ...


@dataclass(frozen=True, slots=True)
class RawTopics:
    """Every record of the topics, of each partition in the order of its offsets."""

    activity: Sequence[TopicRecord]
    revocations: Sequence[TopicRecord]
    policies: Sequence[TopicRecord]
    expiries: Sequence[TopicRecord]

    @property
    def ends_at(self) -> int:
        """The latest append time, epoch ms; 0 without any record."""
        topics = (self.activity, self.revocations, self.policies, self.expiries)
        return max((record.timestamp for records in topics for record in records), default=0)


class Published(NamedTuple):
    """An ending, and when it stood in lapse.expiries for the first time (epoch ms of the broker's clock)."""

    ended: SessionEnded
    appended_at: int


class Finding(NamedTuple):
    """What is wrong with one session, for people."""

    session: str
    what: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome.

    Attributes:
        sessions: how many there were.
        endings: how many of each cause were published.
        early, missed: what is wrong, see the module.
    """

    sessions: int
    endings: Mapping[Cause, int]
    early: tuple[Finding, ...]
    missed: tuple[Finding, ...]


def recompute(topics: RawTopics, rules: Rules) -> Verdict:
    """Return the outcome of the audit; it raises for nothing that records can say."""
    ends_at = topics.ends_at
    endings = published(topics.expiries)
    walks = _walks(topics, rules, endings)
    expected = {session: ending for walk in walks for session, ending in walk.expected.items()}
    early = [*_disagreements(topics.expiries), *_early(endings, expected)]
    return Verdict(
        sessions=len({session for walk in walks for session in walk.seen}),
        endings=Counter(ending.ended.cause for ending in endings.values()),
        early=tuple(early),
        missed=tuple(_missed(walks, endings, ends_at - MISSED_AFTER_MS)),
    )


def published(expiries: Iterable[TopicRecord]) -> dict[str, Published]:
    """Return the endings by session; of a repeated one the first."""
    endings: dict[str, Published] = {}
    for ended, record in _endings(expiries):
        known = endings.get(ended.session)
        if known is None or record.timestamp < known.appended_at:
            endings[ended.session] = Published(ended, record.timestamp)
    return endings


def _endings(expiries: Iterable[TopicRecord]) -> Iterable[tuple[SessionEnded, TopicRecord]]:
    for record in expiries:
        try:
            expiry = parse_expiry(record.value)
        except BadRecord:
            continue
        if isinstance(expiry, SessionEnded):
            yield expiry, record


def _walks(topics: RawTopics, rules: Rules, endings: Mapping[str, Published]) -> list[Walk]:
    revocations = _ordered_revocations(topics.revocations, rules.partitions)
    policies = _ordered_policies(topics.policies)
    by_partition: defaultdict[int, list[TopicRecord]] = defaultdict(list)
    for record in topics.activity:
        by_partition[record.partition].append(record)
    evidence: list[dict[str, EndedBy]] = [{} for _ in range(rules.partitions)]
    for session, (ended, _) in endings.items():
        if 0 <= ended.evidence.partition < rules.partitions:
            evidence[ended.evidence.partition][session] = EndedBy(
                ended.evidence.offset, time=ended.cause in (Cause.IDLE, Cause.ABSOLUTE)
            )
    walks = []
    for partition in range(rules.partitions):
        walk = Walk(partition, rules, revocations[partition], policies, evidence[partition])
        walk.read(by_partition[partition])
        walks.append(walk)
    return walks


def _ordered_revocations(records: Iterable[TopicRecord], partitions: int) -> list[list[OrderedRevocation]]:
    """Return what was ordered in each partition: by subject where there is one, else where it was written."""
    orders: list[dict[str, OrderedRevocation]] = [{} for _ in range(partitions)]
    for record in records:
        try:
            revocation = parse_revocation(record.value)
        except BadRecord:
            continue
        place = record.partition
        if revocation.subject is not None:
            place = partition_of(revocation.subject, revocation.tenant, partitions)
        known = orders[place].get(revocation.id)
        if known is None or record.timestamp < known.at:
            orders[place][revocation.id] = OrderedRevocation(record.timestamp, revocation)
    return [list(by_id.values()) for by_id in orders]


def _ordered_policies(records: Iterable[TopicRecord]) -> list[OrderedPolicy]:
    orders = []
    for record in records:
        try:
            orders.append(OrderedPolicy(record.timestamp, record.offset, parse_policy(record.value)))
        except BadRecord:
            continue
    return orders


def _disagreements(expiries: Iterable[TopicRecord]) -> Iterable[Finding]:
    """Return the endings that were told again with another content."""
    first: dict[str, SessionEnded] = {}
    for ended, record in _endings(expiries):
        known = first.setdefault(ended.session, ended)
        if known != ended:
            yield Finding(ended.session, f"told again at offset {record.offset} with different content")


def _early(endings: Mapping[str, Published], expected: Mapping[str, Expected]) -> Iterable[Finding]:
    for session, (ended, appended_at) in endings.items():
        rule = expected.get(session)
        if rule is None:
            yield Finding(session, f"ended ({ended.cause}, due {ended.due_at}) and is not over by the rules")
        elif (ended.cause, ended.due_at) != (rule.cause, rule.due_at):
            yield Finding(
                session, f"ended as {ended.cause}, due {ended.due_at}; by the rules {rule.cause}, due {rule.due_at}"
            )
        elif ended.decided_at < rule.decided_at:
            yield Finding(session, f"decided at {ended.decided_at}, over only at {rule.decided_at}")
        elif appended_at < ended.due_at:
            yield Finding(session, f"its ending stood in the log at {appended_at}, before it was due ({ended.due_at})")


def _missed(walks: Iterable[Walk], endings: Mapping[str, Published], before: int) -> Iterable[Finding]:
    for walk in walks:
        for rule in walk.expected.values():
            if rule.session not in endings and rule.decided_at < before:
                yield Finding(rule.session, f"over ({rule.cause}) since {rule.due_at}, without an ending")
        uncopied = walk.orders.uncopied(before)
        for login in walk.live.values():
            if login.session in endings:
                continue
            if (over_at := walk.over_at(login)) < before:
                yield Finding(login.session, f"over since {over_at}, and its partition is silent")
            elif any(covers(order, login) for order in uncopied):
                yield Finding(login.session, "covered by a revocation that was never copied into its log")
