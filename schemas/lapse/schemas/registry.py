"""Which model has each `type` on each topic?

The codec reads by these maps and the published documents are generated from them: what is not in here is not a record.
Topics go by their attribute in `topics.TopicNames`, for the prefix is a setting. `lapse.state` is missing on purpose:
its bytes are the processor's own.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from lapse.schemas.activity import (
    PackedTouches,
    SessionClosed,
    SessionElevated,
    SessionRefreshed,
    SessionStarted,
    SessionTouched,
)
from lapse.schemas.control import ClockTick, PolicyAdopted, RevocationOrdered
from lapse.schemas.endings import SessionEnded, SessionExpiring, Watermark
from lapse.schemas.fields import Record
from lapse.schemas.policies import Policy
from lapse.schemas.reports import DeadLetter, GuardApplied, GuardStatus, Violation
from lapse.schemas.revocations import Revocation

__all__ = [
    "ACTIVITY",
    "DEAD_LETTERS",
    "ENFORCEMENT",
    "EXPIRIES",
    "POLICIES",
    "RECORDS",
    "REVOCATIONS",
    "VIOLATIONS",
    "WARNINGS",
    "ActivityRecord",
    "EnforcementRecord",
    "ExpiryRecord",
]

ActivityRecord = (
    SessionStarted
    | SessionTouched
    | PackedTouches
    | SessionRefreshed
    | SessionElevated
    | SessionClosed
    | ClockTick
    | RevocationOrdered
    | PolicyAdopted
)
ExpiryRecord = SessionEnded | Watermark
EnforcementRecord = GuardStatus | GuardApplied

# `Any` where a topic has several: mypy infers no union from classes, and the codec casts to the unions above.
ACTIVITY: Final[Mapping[str, type[Any]]] = MappingProxyType(
    {
        "session.started": SessionStarted,
        "session.touched": SessionTouched,
        "touches": PackedTouches,
        "session.refreshed": SessionRefreshed,
        "session.elevated": SessionElevated,
        "session.closed": SessionClosed,
        "clock.tick": ClockTick,
        "revocation.ordered": RevocationOrdered,
        "policy.adopted": PolicyAdopted,
    }
)
REVOCATIONS: Final[Mapping[str, type[Revocation]]] = MappingProxyType({"revocation": Revocation})
POLICIES: Final[Mapping[str, type[Policy]]] = MappingProxyType({"policy": Policy})
EXPIRIES: Final[Mapping[str, type[Any]]] = MappingProxyType({"session.ended": SessionEnded, "watermark": Watermark})
WARNINGS: Final[Mapping[str, type[SessionExpiring]]] = MappingProxyType({"session.expiring": SessionExpiring})
VIOLATIONS: Final[Mapping[str, type[Violation]]] = MappingProxyType({"violation": Violation})
ENFORCEMENT: Final[Mapping[str, type[Any]]] = MappingProxyType(
    {"guard.status": GuardStatus, "guard.applied": GuardApplied}
)
DEAD_LETTERS: Final[Mapping[str, type[DeadLetter]]] = MappingProxyType({"dead_letter": DeadLetter})

RECORDS: Final[Mapping[str, Mapping[str, type[Record]]]] = MappingProxyType(
    {
        "activity": ACTIVITY,
        "revocations": REVOCATIONS,
        "policies": POLICIES,
        "expiries": EXPIRIES,
        "warnings": WARNINGS,
        "enforcement": ENFORCEMENT,
        "violations": VIOLATIONS,
        "dead_letters": DEAD_LETTERS,
    }
)
