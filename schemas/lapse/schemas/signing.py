"""Did the partition's owner write this record?

Every service may write to the activity topic, so records that decide about others (ticks, copied revocations and
policies, forwarded activity) carry a `mac` under the key that only workers have:

    mac = base64url, unpadded, of HMAC-SHA-256(key, topic | 0x00 | partition in decimal | 0x00 | json)

    json = the record without `mac`, as orjson writes it with OPT_SORT_KEYS: keys sorted at every level by code point,
           no spaces, UTF-8 unescaped but for `"`, `\\` and control characters, integers in decimal

Topic and partition are in it so that a record cannot be replayed into another log; an older one of the same log changes
nothing, by its epoch, version or origin. Unknown fields are signed as well: sign and verify take the plain JSON object.
"""

import base64
import hmac
from collections.abc import Mapping
from typing import Any

import orjson

from lapse.schemas.codec import encode
from lapse.schemas.errors import BadRecord
from lapse.schemas.fields import Record
from lapse.schemas.limits import RECORD_BYTES_MAX

__all__ = ["encode_signed", "sign", "verify"]


def sign(record: Mapping[str, Any], *, topic: str, partition: int, key: bytes) -> str:
    """Return the `mac` of a record that will be written to that partition; a `mac` already in it is left out of it."""
    unsigned = {name: value for name, value in record.items() if name != "mac"}
    body = orjson.dumps(unsigned, option=orjson.OPT_SORT_KEYS)
    digest = hmac.digest(key, b"%b\x00%d\x00%b" % (topic.encode(), partition, body), "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


def verify(record: Mapping[str, Any], *, topic: str, partition: int, key: bytes) -> bool:
    """Return whether the record, as orjson parsed it from that partition, carries a valid `mac`. Never raises."""
    mac = record.get("mac")
    if type(mac) is not str or not mac.isascii():
        return False
    return hmac.compare_digest(mac, sign(record, topic=topic, partition=partition, key=key))


def encode_signed(model: Record, *, topic: str, partition: int, key: bytes) -> bytes:
    """Return the record's value with its `mac` for that partition, as `codec.encode` writes it.

    Raises:
        BadRecord: over RECORD_BYTES_MAX.
    """
    record = orjson.loads(encode(model))
    record["mac"] = sign(record, topic=topic, partition=partition, key=key)
    value = orjson.dumps(record)
    if len(value) > RECORD_BYTES_MAX:
        raise BadRecord(f"value has {len(value)} bytes with its mac, at most {RECORD_BYTES_MAX} are read")
    return value
