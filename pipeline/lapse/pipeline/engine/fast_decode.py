"""Is this record a plain touch, and what does it say? The hot path of the engine.

Nearly all records are touches, single or packed. They are decoded here by msgspec into slotted structs, in about 0.4
us a record where a pydantic model takes 1.5 us. The structs accept less than the models of `lapse.schemas`: unknown
fields, forwarded records, newer versions and everything doubtful raise `NotPlain`, and the caller reads the record
again with the models, which decide and give the reason. So what is accepted here must be accepted there with the same
values; a property test holds the two together.

No size or nesting check is needed for what is accepted here: unknown fields are refused and all known ones are
scalars, so that nothing nests deeper than a packed record's entries; and names are bounded. The size of a record is
checked by `decode_each`.

Source: DESIGN.md section 3; msgspec's structs ("gc=False", "array_like", "forbid_unknown_fields").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import msgspec

from lapse.schemas import NAME_LENGTH_MAX, PACKED_ENTRIES_MAX, RECORD_BYTES_MAX

__all__ = ["NotPlain", "PackedRow", "Plain", "PlainPacked", "PlainTouch", "decode_each", "decode_plain"]

NotPlain = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What `decode_plain` raises when the models have to decide (`msgspec.ValidationError` is a `DecodeError`).

While it looks for the `type` it steps over whatever comes before, by recursion: that ends at Python's own limit.
"""

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_LENGTH_MAX)]
_Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class PlainTouch(msgspec.Struct, tag_field="type", tag="session.touched", forbid_unknown_fields=True, gc=False):
    """`session.touched` as `SessionTouched` has it, without what only forwarded records carry."""

    session: _Name
    subject: _Name
    service: _Name
    age_ms: _Int
    tenant: _Name | None = None
    since_ms: _Int | None = None
    pause_ms: _Int | None = None
    hold_ms: _Int | None = None
    session_age_ms: _Int | None = None
    device: _Name | None = None
    network: _Name | None = None
    v: Literal[1] = 1


class PackedRow(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """An entry of a packed record: [session, subject, tenant or null, age_ms, since_ms?, pause_ms?]."""

    session: _Name
    subject: _Name
    tenant: _Name | None
    age_ms: _Int
    since_ms: _Int | None = None
    pause_ms: _Int | None = None
    hold_ms: ClassVar[None] = None  # an entry has none


class PlainPacked(msgspec.Struct, tag_field="type", tag="touches", forbid_unknown_fields=True, gc=False):
    """`touches` as `PackedTouches` has it, with every entry good."""

    service: _Name
    touches: Annotated[list[PackedRow], msgspec.Meta(max_length=PACKED_ENTRIES_MAX)]
    v: Literal[1] = 1


Plain = PlainTouch | PlainPacked

decode_plain = msgspec.json.Decoder(Plain).decode
"""Decode a value (bytes) into a PlainTouch or PlainPacked, or raise `NotPlain`. A `/` in a tenant is not looked for."""


def decode_each(values: Sequence[bytes | None]) -> list[Plain | None]:
    """Decode at least one value; None stands for what the models have to decide, larger ones than may be among it."""
    try:
        if max(map(len, values)) <= RECORD_BYTES_MAX:  # type: ignore[arg-type]  # a null value raises TypeError
            return list(map(decode_plain, values))  # type: ignore[arg-type]  # as above
    except (*NotPlain, TypeError):
        pass
    return [_decode(value) for value in values]


def _decode(value: bytes | None) -> Plain | None:
    if value is None or len(value) > RECORD_BYTES_MAX:
        return None
    try:
        plain: Plain = decode_plain(value)
    except NotPlain:
        return None
    return plain
