"""How large, how deep and how old may a record be?

Each limit bounds what one writer can cost every reader of a topic; what breaks one is dead-lettered with its reason,
ages excepted, which are clamped and counted.
"""

from typing import Final

__all__ = [
    "AGE_MAX_MS",
    "DEAD_LETTER_VALUE_BYTES_MAX",
    "DURATION_MAX_MS",
    "INT64_MAX",
    "INT64_MIN",
    "NAME_LENGTH_MAX",
    "NESTING_DEPTH_MAX",
    "PACKED_ENTRIES_MAX",
    "REASON_LENGTH_MAX",
    "RECORD_BYTES_MAX",
    "SCHEMA_VERSION",
]

SCHEMA_VERSION: Final = 1
"""The version `v` of all records. A record with a higher one is refused, because its fields may mean something else."""

RECORD_BYTES_MAX: Final = 65_536
"""Bytes of one value. A packed record of 500 entries takes about 22 KB (43 bytes an entry with short names), which
leaves room for names three times as long; a policy or revocation takes a few hundred bytes."""

NESTING_DEPTH_MAX: Final = 16
"""Objects and arrays within each other; the deepest record of ours (policy.adopted with its match) has 5."""

NAME_LENGTH_MAX: Final = 256
"""Code points of any name: session, subject, tenant, service, policy, an attribute's key or value."""

PACKED_ENTRIES_MAX: Final = 500
"""Touches in one packed record: the model reads them in about 0.4 ms, so that one record delays no other for long."""

AGE_MAX_MS: Final = 3_600_000
"""How far back an activity may reach: 1 h, the longest outage of the log whose touches still count."""

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1

DURATION_MAX_MS: Final = 2**53 - 1
"""The largest limit a policy may set: what every JSON reader holds exactly (RFC 8259, section 6), and far enough from
2**63 that an instant (about 2**41) plus any limit still fits in 64 bits."""

DEAD_LETTER_VALUE_BYTES_MAX: Final = 4_096
"""Bytes of the refused value kept in its dead letter: enough to see what it was, far below RECORD_BYTES_MAX after
base64 (4/3)."""

REASON_LENGTH_MAX: Final = 300
"""Characters of a reason. Field paths may hold keys chosen by the writer, up to 64 KiB long."""
