"""What do the parts of Lapse, and programs in any language, agree on?

Records and their codec, topics, keys and partitions, session references, the signature of control records. It imports
nothing of ours and needs pydantic and orjson alone; `schemas/json/` and `schemas/asyncapi.json` are generated from it.
"""

from lapse.schemas.activity import (
    PackedTouch,
    PackedTouches,
    SessionClosed,
    SessionElevated,
    SessionRefreshed,
    SessionStarted,
    SessionTouched,
)
from lapse.schemas.codec import (
    encode,
    parse_activity,
    parse_dead_letter,
    parse_enforcement,
    parse_expiry,
    parse_packed_entry,
    parse_policy,
    parse_revocation,
    parse_violation,
    parse_warning,
)
from lapse.schemas.control import ClockTick, PolicyAdopted, RevocationOrdered
from lapse.schemas.endings import Evidence, SessionEnded, SessionExpiring, Watermark
from lapse.schemas.errors import BadRecord, ConfigError, InvariantError, LapseError, RuntimeFault
from lapse.schemas.fields import Cause, Record
from lapse.schemas.identifiers import ending_id
from lapse.schemas.limits import (
    AGE_MAX_MS,
    DEAD_LETTER_VALUE_BYTES_MAX,
    DURATION_MAX_MS,
    INT64_MAX,
    INT64_MIN,
    NAME_LENGTH_MAX,
    NESTING_DEPTH_MAX,
    PACKED_ENTRIES_MAX,
    REASON_LENGTH_MAX,
    RECORD_BYTES_MAX,
    SCHEMA_VERSION,
)
from lapse.schemas.partitioning import murmur2, partition_of, subject_key
from lapse.schemas.policies import DEFAULT_POLICY, Policy, PolicyMatch
from lapse.schemas.references import is_session_reference, session_reference
from lapse.schemas.registry import ActivityRecord, EnforcementRecord, ExpiryRecord
from lapse.schemas.reports import DeadLetter, GuardApplied, GuardStatus, PropagationMs, Violation
from lapse.schemas.revocations import Revocation, Target
from lapse.schemas.signing import encode_signed, sign, verify
from lapse.schemas.topics import CleanupPolicy, TopicNames, TopicSpec, catalogue

__all__ = [
    "AGE_MAX_MS",
    "DEAD_LETTER_VALUE_BYTES_MAX",
    "DEFAULT_POLICY",
    "DURATION_MAX_MS",
    "INT64_MAX",
    "INT64_MIN",
    "NAME_LENGTH_MAX",
    "NESTING_DEPTH_MAX",
    "PACKED_ENTRIES_MAX",
    "REASON_LENGTH_MAX",
    "RECORD_BYTES_MAX",
    "SCHEMA_VERSION",
    "ActivityRecord",
    "BadRecord",
    "Cause",
    "CleanupPolicy",
    "ClockTick",
    "ConfigError",
    "DeadLetter",
    "EnforcementRecord",
    "Evidence",
    "ExpiryRecord",
    "GuardApplied",
    "GuardStatus",
    "InvariantError",
    "LapseError",
    "PackedTouch",
    "PackedTouches",
    "Policy",
    "PolicyAdopted",
    "PolicyMatch",
    "PropagationMs",
    "Record",
    "Revocation",
    "RevocationOrdered",
    "RuntimeFault",
    "SessionClosed",
    "SessionElevated",
    "SessionEnded",
    "SessionExpiring",
    "SessionRefreshed",
    "SessionStarted",
    "SessionTouched",
    "Target",
    "TopicNames",
    "TopicSpec",
    "Violation",
    "Watermark",
    "catalogue",
    "encode",
    "encode_signed",
    "ending_id",
    "is_session_reference",
    "murmur2",
    "parse_activity",
    "parse_dead_letter",
    "parse_enforcement",
    "parse_expiry",
    "parse_packed_entry",
    "parse_policy",
    "parse_revocation",
    "parse_violation",
    "parse_warning",
    "partition_of",
    "session_reference",
    "sign",
    "subject_key",
    "verify",
]
