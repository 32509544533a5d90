"""Are records handed out of a fetched answer as aiokafka itself would, and at the same positions?

Batches are built by aiokafka, and read twice by its own FetchResult: as it is, and with what stands in for its records.
"""

import struct

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.consumer.subscription_state import Assignment
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c

from lapse.consumers.guard.backlog import _Fetched

TP = TopicPartition("t", 0)
CRC_AT, BODY_AT, LAST_DELTA_AT = 17, 21, 23
CONTROL = 0x20


def _batch(first: int, offsets: list[int], *, last: int | None = None, control: bool = False, gzip: int = 0) -> bytes:
    """Return a batch of records at `offsets` after `first`; with `last` those up to it were compacted away."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=gzip, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1,
        batch_size=1_000_000,
    )  # fmt: skip
    for offset in offsets:
        value = b"\0\0\0\0" if control else f"{first + offset}".encode()
        builder.append(offset, 1_000 + first + offset, b"k", value, [])
    raw = bytearray(builder.build())
    struct.pack_into(">q", raw, 0, first)
    if control:
        (attributes,) = struct.unpack_from(">h", raw, BODY_AT)
        struct.pack_into(">h", raw, BODY_AT, attributes | CONTROL)
    if last is not None:
        struct.pack_into(">i", raw, LAST_DELTA_AT, last)
    struct.pack_into(">I", raw, CRC_AT, calc_crc32c(bytes(raw[BODY_AT:])))
    return bytes(raw)


def _read(answer: bytes, asked_for: int, slice_max: int, *, light: bool) -> list[object]:
    """Return what is read of an answer slice by slice, with the position after each."""
    assignment = Assignment([TP])
    state = assignment.state_value(TP)
    state.reset_to(asked_for)
    result = FetchResult(
        TP,
        assignment=assignment,
        partition_records=PartitionRecords(TP, MemoryRecords(answer), [], asked_for, None, None, True, 0),
        backoff=0.1,
    )
    if light:
        _Fetched()[TP] = result
    read: list[object] = []
    while result.has_more():
        records = result.getall(slice_max)
        read.append(([(r.offset, r.timestamp, r.value) for r in records], state.position))
    return read


@pytest.mark.parametrize("slice_max", [1, 3, 4, 100])
@pytest.mark.parametrize("asked_for", [0, 2, 8])
@pytest.mark.parametrize(
    "answer",
    [
        _batch(0, [0, 1, 2, 3]) + _batch(4, [0, 1, 2, 3, 4, 5]),
        _batch(0, [0, 3], last=6) + _batch(7, [1, 2], last=2),
        _batch(0, [], last=8) + _batch(9, [0]),
        _batch(0, list(range(9)), last=12),
        _batch(0, [0, 1]) + _batch(2, [0], control=True) + _batch(3, [0, 5]) + _batch(9, [0], control=True),
        _batch(0, list(range(10)), gzip=1),
        _batch(0, list(range(10)))[:-20],
    ],
    ids=["two", "compacted", "emptied", "cut short by compaction", "control", "gzip", "the end is missing"],
)
async def test_records_and_positions_are_what_aiokafka_says(answer: bytes, asked_for: int, slice_max: int) -> None:
    assert _read(answer, asked_for, slice_max, light=True) == _read(answer, asked_for, slice_max, light=False)


async def test_a_damaged_batch_is_refused_when_its_turn_comes() -> None:
    damaged = bytearray(_batch(2, [0, 1]))
    damaged[damaged.rindex(b"k")] ^= 1  # a key is as good as another: only the checksum tells
    with pytest.raises(CorruptRecordException):
        _read(_batch(0, [0, 1]) + damaged, 0, 100, light=True)


async def test_a_reader_of_committed_records_keeps_aiokafkas_way() -> None:
    records = PartitionRecords(TP, MemoryRecords(_batch(0, [0])), [], 0, None, None, True, 1)
    result = FetchResult(TP, assignment=Assignment([TP]), partition_records=records, backoff=0.1)
    _Fetched()[TP] = result
    assert result._partition_records is records
