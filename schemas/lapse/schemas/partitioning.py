"""In which partition is a subject?

The same one of every topic that is co-partitioned: Kafka's default placement of the key `tenant/subject`, or `subject`
without a tenant, in UTF-8, so that producers in any language agree:

    partition = (murmur2(key) & 0x7fffffff) % partitions

The key only places a record. Whom it concerns says its value, where tenant and subject are two fields: the subject
`acme/u` without a tenant shares the key of subject `u` in tenant `acme`, and nothing else.
"""

from struct import Struct
from typing import Final

__all__ = ["murmur2", "partition_of", "subject_key"]

_MASK: Final = 0xFFFFFFFF
_M: Final = 0x5BD1E995
_R: Final = 24
_SEED: Final = 0x9747B28C
_WORDS: Final = tuple(Struct(f"<{count}I") for count in range(33))


def murmur2(data: bytes) -> int:
    """Return the 32-bit murmur2 of the bytes with Kafka's seed, unsigned.

    Source: org.apache.kafka.common.utils.Utils.murmur2, after Austin Appleby's MurmurHash2.
    """
    length = len(data)
    count = length >> 2
    layout = _WORDS[count] if count < len(_WORDS) else Struct(f"<{count}I")
    h = _SEED ^ length
    for k in layout.unpack_from(data):
        k = k * _M & _MASK
        h = (h * _M ^ (k ^ k >> _R) * _M) & _MASK
    if tail := data[count << 2 :]:
        h = (h ^ int.from_bytes(tail, "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    return h ^ h >> 15


def subject_key(subject: str, tenant: str | None) -> bytes:
    """Return the key of the subject's records: UTF-8 of `tenant/subject`, or of `subject`."""
    return (subject if tenant is None else f"{tenant}/{subject}").encode()


def partition_of(subject: str, tenant: str | None, partitions: int) -> int:
    """Return the subject's partition of each co-partitioned topic, 0 <= it < partitions."""
    return (murmur2(subject_key(subject, tenant)) & 0x7FFFFFFF) % partitions
