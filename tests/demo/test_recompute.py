"""Does the audit find what is wrong? Hand-made topics of one partition, right ones and wrong ones.

Each wrong one is a right one with a single change, so that what is found is found for that change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from lapse.pipeline.demo.recompute import MISSED_AFTER_MS, RawTopics, Verdict, recompute
from lapse.pipeline.demo.walk import SETTLED_WITHIN_MS, Rules
from lapse.schemas import Cause, ending_id

from tests.engine.records import T0, closed, policy_adopted, ref, revocation_ordered, started, tick, touched

IDLE_MS, ABSOLUTE_MS, GRACE_MS = 4_000, 20_000, 250
RULES = Rules(
    partitions=1,
    grace_ms=GRACE_MS,
    gap_ms=3_000,
    gap_grace_ms=5_000,
    age_max_ms=3_600_000,
    ended_memory_ms=3_600_000,
    adopt_unknown=True,
)
LIMITS = {"idle_ms": IDLE_MS, "absolute_ms": ABSOLUTE_MS}


@dataclass(frozen=True)
class _Record:
    partition: int
    offset: int
    timestamp: int
    value: bytes | None


class _Topics:
    """Topics that are being written; times are ms after T0."""

    def __init__(self) -> None:
        self.records: dict[str, list[_Record]] = {"activity": [], "revocations": [], "policies": [], "expiries": []}
        copy = policy_adopted("default", 0, **LIMITS)
        self.add("policies", 0, copy["policy"])
        self.add("activity", 0, copy)
        self._mono = 0

    def add(self, topic: str, at_ms: int, value: Any) -> None:
        records = self.records[topic]
        records.append(_Record(0, len(records), T0 + at_ms, orjson.dumps(value)))

    def active(self, at_ms: int, value: Any) -> None:
        self.add("activity", at_ms, value)

    def ticks(self, *, start: int, end: int) -> None:
        """Write a tick each second, the last one at `end`."""
        for at in [*range(start, end, 1_000), end]:
            self.active(at, tick(at, prev_ms=self._mono, ack_ms=self._mono + 3))
            self._mono = at

    def ended(self, at_ms: int, session: str, cause: Cause, due_ms: int, decided_ms: int, **changes: Any) -> None:
        ending = {
            "type": "session.ended",
            "id": ending_id(ref(session)),
            "session": ref(session),
            "subject": "u-1",
            "tenant": None,
            "cause": cause.value,
            "started_at": T0,
            "last_seen_at": T0,
            "due_at": T0 + due_ms,
            "decided_at": T0 + decided_ms,
            "idle_ms": IDLE_MS,
            "absolute_ms": ABSOLUTE_MS,
            "policy": "default",
            "policy_version": 0,
            "revocation": None,
            "held": False,
            "evidence": {"partition": 0, "offset": 9},
            "deny_until": T0 + 3_620_000,
        }
        self.add("expiries", at_ms, ending | changes)

    def verdict(self) -> Verdict:
        return recompute(RawTopics(**self.records), RULES)


def _idle_topics() -> _Topics:
    """Return the topics of a session that starts at 0, is touched at 2 s, is over at 6.25 s, and has no ending yet."""
    topics = _Topics()
    topics.active(0, started())
    topics.ticks(start=1_000, end=1_500)
    topics.active(2_000, touched())
    topics.ticks(start=3_000, end=6_240)
    topics.active(6_260, tick(6_260))
    topics.ticks(start=7_000, end=12_000)
    return topics


def _counts(verdict: Verdict) -> tuple[int, int]:
    return len(verdict.early), len(verdict.missed)


def test_a_right_log_has_nothing_early_and_nothing_missed() -> None:
    topics = _idle_topics()
    topics.ended(6_270, "s", Cause.IDLE, 6_000, 6_260)
    verdict = topics.verdict()
    assert _counts(verdict) == (0, 0), verdict
    assert verdict.sessions == 1
    assert verdict.endings == {Cause.IDLE: 1}


@pytest.mark.parametrize(
    ("cause", "due_ms", "decided_ms", "appended_ms"),
    [
        (Cause.IDLE, 6_000, 6_240, 6_245),  # decided within the grace
        (Cause.IDLE, 4_000, 6_260, 6_270),  # as if the touch had not been
        (Cause.IDLE, 6_001, 6_260, 6_270),
        (Cause.ABSOLUTE, 6_000, 6_260, 6_270),
        (Cause.REVOKED, 6_000, 6_260, 6_270),
        (Cause.IDLE, 6_000, 6_260, 5_999),  # in the log before it was due
    ],
)
def test_an_ending_that_the_rules_do_not_give_is_early(
    cause: Cause, due_ms: int, decided_ms: int, appended_ms: int
) -> None:
    topics = _idle_topics()
    topics.ended(appended_ms, "s", cause, due_ms, decided_ms)
    assert _counts(topics.verdict()) == (1, 0)


def test_an_ending_of_a_live_session_is_early() -> None:
    topics = _Topics()
    topics.active(0, started())
    topics.ticks(start=1_000, end=3_000)
    topics.ended(3_001, "s", Cause.IDLE, 2_900, 3_000)
    assert _counts(topics.verdict()) == (1, 0)


def test_an_ending_of_a_session_that_never_was_is_early() -> None:
    topics = _idle_topics()
    topics.ended(6_270, "s", Cause.IDLE, 6_000, 6_260)
    topics.ended(6_270, "other", Cause.IDLE, 6_000, 6_260)
    assert _counts(topics.verdict()) == (1, 0)


def test_an_ending_told_again_with_other_fields_is_early_and_the_same_again_is_not() -> None:
    topics = _idle_topics()
    topics.ended(6_270, "s", Cause.IDLE, 6_000, 6_260)
    topics.ended(9_000, "s", Cause.IDLE, 6_000, 6_260)
    assert _counts(topics.verdict()) == (0, 0)
    topics.ended(9_500, "s", Cause.IDLE, 6_000, 6_260, held=True)
    assert _counts(topics.verdict()) == (1, 0)


def test_a_session_that_is_over_and_has_no_ending_is_missed() -> None:
    verdict = _idle_topics().verdict()
    assert _counts(verdict) == (0, 1), verdict
    assert verdict.missed[0].session == ref("s")


def test_what_was_over_only_just_before_the_end_may_still_be_on_its_way() -> None:
    topics = _Topics()
    topics.active(0, started())
    over_at = IDLE_MS + GRACE_MS
    topics.ticks(start=1_000, end=over_at)
    topics.ticks(start=over_at + 1_000, end=over_at + MISSED_AFTER_MS)
    assert _counts(topics.verdict()) == (0, 0)
    topics.active(over_at + MISSED_AFTER_MS + 1, tick())
    assert _counts(topics.verdict()) == (0, 1)


def test_a_partition_that_fell_silent_hides_nothing() -> None:
    """The owner died: no record of the partition says that time goes on, but those of other topics do."""
    topics = _Topics()
    topics.active(0, started())
    topics.ticks(start=1_000, end=2_000)
    topics.add("expiries", 9_000, {"type": "watermark", "as_of": T0 + 2_000})
    assert _counts(topics.verdict()) == (0, 1)


def test_an_absolute_ending_has_no_grace() -> None:
    topics = _Topics()
    topics.active(0, started())
    for at in range(1_000, ABSOLUTE_MS, 1_000):
        topics.active(at, touched())
    topics.active(ABSOLUTE_MS, tick())
    topics.ended(ABSOLUTE_MS + 5, "s", Cause.ABSOLUTE, ABSOLUTE_MS, ABSOLUTE_MS)
    topics.ticks(start=21_000, end=25_000)
    assert _counts(topics.verdict()) == (0, 0)


def test_a_close_ends_the_session_at_its_instant() -> None:
    topics = _Topics()
    topics.active(0, started())
    topics.active(2_000, closed(age_ms=100))
    topics.ended(2_010, "s", Cause.CLOSED, 1_900, 2_000)
    topics.ticks(start=3_000, end=9_000)
    assert _counts(topics.verdict()) == (0, 0)


def _revoked(*, copied_at: int | None, original: bool = True, at_ms: int = 2_000) -> _Topics:
    """Return the topics of a session that starts at 1 s and of a revocation of its subject, ordered at 2 s."""
    topics = _Topics()
    order = revocation_ordered(at_ms, "r-1", subject="u-1")
    topics.active(1_000, started())
    if original:
        topics.add("revocations", at_ms, order["revocation"])
    if copied_at is not None:
        topics.active(copied_at, order)
    for at in range(3_000, 9_000, 1_000):
        topics.active(at, touched())
    return topics


def test_a_revocation_ends_the_session_where_its_copy_stands() -> None:
    topics = _revoked(copied_at=2_010)
    topics.ended(2_015, "s", Cause.REVOKED, 2_000, 2_010, revocation="r-1")
    assert _counts(topics.verdict()) == (0, 0)


def test_a_revoked_session_that_goes_on_is_missed() -> None:
    assert _counts(_revoked(copied_at=2_010).verdict()) == (0, 1)


def test_a_revocation_that_was_never_copied_is_missed() -> None:
    assert _counts(_revoked(copied_at=None).verdict()) == (0, 1)
    last = _revoked(copied_at=None, at_ms=8_000)  # the last record comes at 8 s: its copy may be on its way
    assert _counts(last.verdict()) == (0, 0)


def test_a_copy_without_an_original_revokes_nothing() -> None:
    topics = _revoked(copied_at=2_010, original=False)
    topics.ended(2_015, "s", Cause.REVOKED, 2_000, 2_010, revocation="r-1")
    assert _counts(topics.verdict()) == (1, 0)


def test_a_login_after_the_revocation_is_not_covered() -> None:
    topics = _revoked(copied_at=2_010, at_ms=900)
    topics.ended(2_015, "s", Cause.REVOKED, 900, 2_010, revocation="r-1")
    assert _counts(topics.verdict()) == (1, 0)


@pytest.mark.parametrize(("copied_ms", "early"), [(6_264, 0), (6_260 + SETTLED_WITHIN_MS + 1, 1)])
def test_a_session_that_is_over_may_still_be_revoked_until_the_owner_is_certain_of_the_time(
    copied_ms: int, early: int
) -> None:
    """The first record to show it over is settled by one of the owner's next ticks, not by any later one."""
    topics = _Topics()
    topics.active(0, started())
    topics.active(2_000, touched())
    topics.ticks(start=3_000, end=6_240)
    topics.active(6_260, closed("other"))
    order = revocation_ordered(copied_ms, "r-1", subject="u-1")
    topics.add("revocations", copied_ms, order["revocation"])
    topics.active(copied_ms, order)
    evidence = {"partition": 0, "offset": len(topics.records["activity"]) - 1}
    topics.ended(copied_ms + 1, "s", Cause.REVOKED, copied_ms, copied_ms, revocation="r-1", evidence=evidence)
    assert _counts(topics.verdict()) == (early, 0)


@pytest.mark.parametrize(("cause", "due_ms", "early"), [(Cause.IDLE, 6_000, 0), (Cause.ABSOLUTE, 20_000, 1)])
def test_a_hold_whose_end_is_known_late_ended_when_it_should(cause: Cause, due_ms: int, early: int) -> None:
    """The owner's tick comes long after the jump: the hold was over at 13 s, before the absolute limit."""
    topics = _Topics()
    topics.active(0, started())
    topics.active(2_000, touched())
    topics.ticks(start=3_000, end=3_100)
    for at in range(8_000, 21_000, 2_500):
        topics.active(at, closed("other"))
    topics.active(21_000, tick(21_000))
    topics.active(21_010, tick(21_010, prev_ms=21_000, ack_ms=21_003))
    evidence = {"partition": 0, "offset": len(topics.records["activity"]) - 1}
    topics.ended(21_020, "s", cause, due_ms, 21_010, held=True, evidence=evidence)
    assert _counts(topics.verdict()) == (early, 0)


def test_what_cannot_be_read_stops_nothing() -> None:
    topics = _idle_topics()
    topics.ended(6_270, "s", Cause.IDLE, 6_000, 6_260)
    for topic in topics.records:
        topics.add(topic, 6_300, {"type": "no.such"})
        topics.records[topic].append(_Record(0, 10_000, T0 + 6_300, None))
    assert _counts(topics.verdict()) == (0, 0)


def test_no_records_at_all_are_no_sessions() -> None:
    verdict = recompute(RawTopics([], [], [], []), RULES)
    assert (verdict.sessions, _counts(verdict)) == (0, (0, 0))
