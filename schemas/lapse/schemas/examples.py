"""What does one valid record of each type look like?

They stand in the published documents and are what the tests parse; every field is filled that may be.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from lapse.schemas.identifiers import ending_id
from lapse.schemas.references import session_reference

__all__ = ["EXAMPLES"]

_SESSION: Final = session_reference("an example, and no secret")
_OTHER_SESSION: Final = session_reference("another example")
_REVOCATION_ID: Final = "01JDGK3V6M8Q4T9Z2X7Y5W1R0N"
_MAC: Final = "ZKq1mQy8pT2vG7n0cXb4LrJ5sEwHd9uAoFiMxYtNe3U"
_AT: Final = 1_764_000_000_000

_WHO: Final = {"session": _SESSION, "subject": "u-42", "tenant": "acme"}
_REVOCATION: Final = {
    "type": "revocation",
    "id": _REVOCATION_ID,
    "session": None,
    "subject": "u-42",
    "tenant": "acme",
    "everyone": False,
    "reason": "admin",
    "note": "stolen laptop",
    "by": "alice@ops",
}
_POLICY: Final = {
    "type": "policy",
    "name": "workforce",
    "idle_ms": 900_000,
    "absolute_ms": 28_800_000,
    "warn_before_ms": 60_000,
    "hold_max_ms": 3_600_000,
    "token_life_ms": None,
    "match": {"tenant": ["acme"], "service": ["web"], "attributes": {"role": ["admin"]}},
    "by": "alice@ops",
    "note": "as the works council agreed",
}

EXAMPLES: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "session.started": {
            "type": "session.started",
            **_WHO,
            "service": "web",
            "age_ms": 3,
            "policy": "workforce",
            "device": "d-9",
            "network": "203.0.113.0/24",
            "attributes": {"role": "admin"},
            "token_life_ms": 900_000,
        },
        "session.touched": {
            "type": "session.touched",
            **_WHO,
            "service": "billing",
            "age_ms": 1_200,
            "since_ms": 6_000,
            "pause_ms": 900,
            "hold_ms": 0,
            "session_age_ms": 3_600_000,
            "device": "d-9",
            "network": "203.0.113.0/24",
        },
        "touches": {
            "type": "touches",
            "service": "billing",
            "touches": [[_SESSION, "u-42", "acme", 1_200], [_OTHER_SESSION, "u-7", None, 40, 6_000, 900]],
        },
        "session.refreshed": {"type": "session.refreshed", **_WHO, "service": "idp", "age_ms": 0, "generation": 4},
        "session.elevated": {
            "type": "session.elevated",
            **_WHO,
            "service": "web",
            "age_ms": 0,
            "session_age_ms": 3_600_000,
        },
        "session.closed": {"type": "session.closed", **_WHO, "service": "web", "age_ms": 0},
        "clock.tick": {
            "type": "clock.tick",
            "epoch": 7,
            "owner": "w-7",
            "mono_ms": 86_400_123,
            "wall_at": _AT,
            "prev_ms": 86_399_121,
            "ack_ms": 86_399_124,
            "up_ms": 3_600_000,
            "mac": _MAC,
        },
        "revocation.ordered": {
            "type": "revocation.ordered",
            "at": _AT,
            "revocation": _REVOCATION,
            "mac": _MAC,
        },
        "policy.adopted": {"type": "policy.adopted", "version": 12, "policy": _POLICY, "mac": _MAC},
        "revocation": _REVOCATION,
        "policy": _POLICY,
        "session.ended": {
            "type": "session.ended",
            "id": ending_id(_SESSION),
            **_WHO,
            "cause": "idle",
            "started_at": _AT - 3_600_000,
            "last_seen_at": _AT - 900_000,
            "due_at": _AT,
            "decided_at": _AT + 257,
            "idle_ms": 900_000,
            "absolute_ms": 28_800_000,
            "policy": "workforce",
            "policy_version": 12,
            "revocation": None,
            "held": False,
            "evidence": {"partition": 3, "offset": 123_456},
            "deny_until": _AT + 28_800_000,
        },
        "watermark": {"type": "watermark", "as_of": _AT, "offset_ms": -3_600_004},
        "session.expiring": {
            "type": "session.expiring",
            **_WHO,
            "cause": "idle",
            "due_at": _AT,
            "in_ms": 60_000,
        },
        "guard.status": {
            "type": "guard.status",
            "service": "billing",
            "instance": "b-3",
            "version": "0.1.0",
            "applied": {"expiries": [1_204, -1], "revocations": [17, 3]},
            "stale_ms": 120,
            "entries": 512,
            "checks": 90_210,
            "refused": 14,
            "allowed_while_stale": 0,
            "propagation_ms": {"p50": 3.0, "p99": 9.5},
            "clock_offset_ms": -12.4,
            "stale_after_ms": 10_000,
            "on_stale": "deny",
            "stopping": False,
        },
        "guard.applied": {
            "type": "guard.applied",
            "service": "billing",
            "instance": "b-3",
            "revocation": _REVOCATION_ID,
            "after_ms": 4.0,
            "closed": 1,
        },
        "violation": {
            "type": "violation",
            **_WHO,
            "service": "legacy",
            "ended_at": _AT,
            "active_at": _AT + 4_000,
            "ending": ending_id(_SESSION),
        },
        "dead_letter": {
            "type": "dead_letter",
            "topic": "lapse.activity",
            "partition": 3,
            "offset": 99,
            "entry": None,
            "reason": "not JSON: unexpected character, expected a JSON value",
            "size": 5,
            "value": "aGVsbG8=",
        },
    }
)
