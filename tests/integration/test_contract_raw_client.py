"""Goal: a client in any language, written from the published schemas alone, has sessions and gets their endings.

Method: confluent-kafka with the partitioner that the documents name, plain dicts; each value is checked against
`schemas/json/` before it is written and after it is read. No code of ours makes, keys or places a record.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.brokers import Broker
from tests.integration._estate import PARTITIONS, Estate, estate_on, session_names
from tests.integration._raw import RawReader, published

pytestmark = pytest.mark.broker

SHIFT = {"type": "policy", "name": "shift", "idle_ms": None, "absolute_ms": 1_500}
ANNOUNCED = {"type": "policy", "name": "announced", "idle_ms": 2_000, "absolute_ms": None, "warn_before_ms": 1_500}

# The key of each is `tenant/subject` or `subject` in UTF-8: clients must agree on the bytes, not on the letters.
PEOPLE = [("u-42", None), ("u-42", "acme"), ("žofie", None), ("人", "株式会社"), ("a b/c", "x:y"), ("u-7", "acme")]


@pytest.fixture(scope="module")
def estate(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Estate]:
    with estate_on(broker, tmp_path_factory.mktemp("raw"), SHIFT, ANNOUNCED) as made:
        yield made


def about(kind: str, session: str, subject: str = "u-42", tenant: str | None = "acme", **more: Any) -> dict[str, Any]:
    """Return an activity record as the schema describes it."""
    return {
        "type": kind,
        "session": session,
        "subject": subject,
        "tenant": tenant,
        "service": "raw",
        "age_ms": 0,
    } | more


def test_a_session_that_is_closed_ends_as_closed_at_that_instant(estate: Estate) -> None:
    (session,) = session_names(1)
    start, touch, close = estate.writer.activities(
        [
            about("session.started", session, age_ms=900, policy="office", attributes={"role": "admin"}, device="d-1"),
            about("session.touched", session, age_ms=300, network="203.0.113.0/24"),
            about("session.closed", session, age_ms=100),
        ]
    )
    (ending,) = estate.endings(session)
    assert ending["cause"] == "closed"
    assert ending["started_at"] == start.stamp - 900
    assert ending["last_seen_at"] == touch.stamp - 300
    assert ending["due_at"] == close.stamp - 100
    assert ending["evidence"] == {"partition": close.partition, "offset": close.offset}
    assert (ending["subject"], ending["tenant"], ending["policy"]) == ("u-42", "acme", "office")
    assert (ending["idle_ms"], ending["absolute_ms"], ending["revocation"]) == (3_600_000, 28_800_000, None)


@pytest.mark.parametrize(("subject", "tenant"), PEOPLE)
def test_a_session_ends_as_idle_counted_from_its_last_touch(estate: Estate, subject: str, tenant: str | None) -> None:
    (session,) = session_names(1)
    _, touch, _ = estate.writer.activities(
        [
            about("session.started", session, subject, tenant, age_ms=500, policy="brief"),
            about("session.touched", session, subject, tenant),
            about("session.refreshed", session, subject, tenant, generation=2),
        ]
    )
    (ending,) = estate.endings(session)
    assert (ending["cause"], ending["policy"]) == ("idle", "brief")
    assert ending["last_seen_at"] == touch.stamp
    assert ending["due_at"] == touch.stamp + 1_000
    # Placed by the client's murmur2, it was where the processor looks: nothing had to be forwarded.
    assert ending["evidence"]["partition"] == touch.partition


def test_a_session_ends_as_absolute_whatever_it_does(estate: Estate) -> None:
    (session,) = session_names(1)
    start = estate.writer.activity(about("session.started", session, policy="shift"))
    while session not in estate.ended():
        estate.writer.activity(about("session.elevated", session))
        estate.read("expiries").to_end()
    (ending,) = estate.endings(session)
    assert (ending["cause"], ending["idle_ms"], ending["absolute_ms"]) == ("absolute", None, 1_500)
    assert ending["due_at"] == start.stamp + 1_500


def test_a_session_about_to_end_is_announced(estate: Estate) -> None:
    (session,) = session_names(1)
    warnings = estate.read("warnings")
    start = estate.writer.activity(about("session.started", session, policy="announced"))
    due_at = start.stamp + 2_000
    warnings.until(lambda records: any(one.json["session"] == session for one in records), "a warning")
    (ending,) = estate.endings(session)
    (warning,) = (one for one in warnings.to_end() if one.json["session"] == session)
    assert warning.json["cause"] == "idle"
    assert warning.json["due_at"] == ending["due_at"] == due_at
    assert 0 < warning.json["in_ms"] <= 1_500


def test_a_session_is_revoked_whenever_it_started(estate: Estate) -> None:
    revoked, other = session_names(2)
    estate.writer.activities([about("session.started", one, policy="office") for one in (revoked, other)])
    order = {"type": "revocation", "id": "raw-1", "session": revoked, "subject": "u-42", "tenant": "acme"}
    stands = estate.writer.revoke(order)
    (ending,) = estate.endings(revoked)
    assert (ending["cause"], ending["revocation"], ending["due_at"]) == ("revoked", "raw-1", stands.stamp)
    estate.fence(stands.partition)
    assert other not in estate.ended()


def test_a_subjects_sessions_are_revoked_and_its_later_logins_pass(estate: Estate) -> None:
    subject, tenant = "u-9", "acme"
    before = session_names(3)
    estate.writer.activities([about("session.started", one, subject, tenant, policy="office") for one in before])
    order = {"type": "revocation", "id": "raw-2", "subject": subject, "tenant": tenant, "reason": "credential_change"}
    at = estate.writer.revoke(order).stamp
    for ending in estate.endings(*before):
        assert (ending["cause"], ending["revocation"], ending["due_at"]) == ("revoked", "raw-2", at)
    later = login_after(estate, at, subject, tenant)
    (ending,) = estate.endings(later)
    assert ending["cause"] == "closed"


def test_a_tenant_and_everyone_are_revoked_in_every_partition(estate: Estate) -> None:
    tenants = ("guild", "other", None)
    sessions = {tenant: session_names(8) for tenant in tenants}
    for tenant in tenants:
        for number, session in enumerate(sessions[tenant]):
            estate.writer.activity(about("session.started", session, f"u-{number}", tenant, policy="office"))
    estate.writer.revoke_everywhere({"type": "revocation", "id": "raw-3", "tenant": "guild"}, PARTITIONS)
    endings = estate.endings(*sessions["guild"])
    assert {(one["cause"], one["revocation"]) for one in endings} == {("revoked", "raw-3")}
    assert len({one["evidence"]["partition"] for one in endings}) > 1
    orders = estate.writer.revoke_everywhere({"type": "revocation", "id": "raw-4", "everyone": True}, PARTITIONS)
    rest = estate.endings(*sessions["other"], *sessions[None])
    assert {(one["cause"], one["revocation"]) for one in rest} == {("revoked", "raw-4")}
    (ending,) = estate.endings(login_after(estate, max(order.stamp for order in orders), "u-1", "guild"))
    assert ending["cause"] == "closed"


def login_after(estate: Estate, at: int, subject: str, tenant: str | None) -> str:
    """Log in once the log's clock is past this instant, and out; return the session."""
    while True:
        (session,) = session_names(1)
        start = estate.writer.activity(about("session.started", session, subject, tenant, policy="office"))
        if start.stamp > at:
            estate.writer.activity(about("session.closed", session, subject, tenant))
            return session


def test_activity_after_the_end_is_reported_once_with_the_service_that_accepted_it(estate: Estate) -> None:
    (session,) = session_names(1)
    estate.writer.activities([about("session.started", session), about("session.closed", session)])
    (ending,) = estate.endings(session)
    violations = estate.read("violations")

    def reported() -> list[dict[str, Any]]:
        return [one.json for one in violations.records if one.json["session"] == session]

    # Until the log's clock is far enough past the end (2 s); all that come too early must not be reported.
    touches = [estate.writer.activity(about("session.touched", session, service="legacy"))]
    while touches[-1].stamp <= ending["decided_at"] + 2_000:
        touches.append(estate.writer.activity(about("session.touched", session, service="legacy")))
    last = estate.writer.activity(about("session.touched", session, service="legacy"))
    violations.until(lambda _: bool(reported()), "a violation")
    estate.fence(last.partition)
    violations.to_end()
    (violation,) = reported()
    assert (violation["service"], violation["ending"]) == ("legacy", ending["id"])
    assert violation["ended_at"] == ending["decided_at"]
    assert violation["active_at"] == touches[-1].stamp


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_a_client_may_compress_as_it_likes(estate: Estate, codec: str) -> None:
    (session,) = session_names(1)
    writer = estate.written_by(compression_type=codec)
    touches = [about("session.touched", session)] * 50
    writer.activities([about("session.started", session, policy="office"), *touches, about("session.closed", session)])
    (ending,) = estate.endings(session)
    assert ending["cause"] == "closed"


def test_a_client_may_write_in_transactions(estate: Estate) -> None:
    (session,) = session_names(1)
    writer = estate.written_by(transactional_id=f"{estate.prefix}client")
    records = [about("session.started", session, policy="office"), about("session.closed", session)]
    start, close = writer.transaction(records)
    (ending,) = estate.endings(session)
    assert (ending["cause"], ending["started_at"], ending["due_at"]) == ("closed", start.stamp, close.stamp)


def test_nothing_of_this_had_to_be_forwarded_or_refused(estate: Estate) -> None:
    records = estate.activity.to_end()
    assert not [one for one in records if one.value is not None and b'"forwarded"' in one.value]
    assert estate.read("dead-letters").to_end() == []


@pytest.mark.parametrize("topic", ["activity", "expiries", "warnings", "violations", "revocations", "policies"])
def test_every_value_of_every_topic_is_of_the_published_form(estate: Estate, topic: str) -> None:
    reader = RawReader(estate.bootstrap, estate.prefix, topic)
    try:
        records = reader.to_end()
    finally:
        reader.close()
    assert records
    for record in records:
        published(f"lapse.{topic}").validate(record.json)


def test_every_ending_stands_the_audit(estate: Estate) -> None:
    estate.audit()
