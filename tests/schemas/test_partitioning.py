"""Goal: a subject is in the partition where Kafka's default partitioner puts it, in every client.

Method: vectors of Kafka's own tests, aiokafka's implementation and librdkafka's, over arbitrary keys.
"""

import random

import confluent_kafka
import pytest
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.partitioner import murmur2 as aiokafka_murmur2
from hypothesis import given
from hypothesis import strategies as st

from lapse.schemas import murmur2, partition_of, subject_key

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256)


@pytest.mark.parametrize(
    ("data", "signed"),
    [
        # org.apache.kafka.common.utils.UtilsTest.testMurmur2
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_gives_what_kafkas_own_tests_expect(data: bytes, signed: int) -> None:
    assert murmur2(data) == signed % 2**32


@given(st.binary(max_size=400))
def test_property_murmur2_is_aiokafkas(data: bytes) -> None:
    assert murmur2(data) == aiokafka_murmur2(data) % 2**32


@given(NAMES, st.none() | NAMES, st.integers(1, 1_000))
def test_property_partition_is_that_of_aiokafkas_default_partitioner(
    subject: str, tenant: str | None, partitions: int
) -> None:
    every = list(range(partitions))
    expected = DefaultPartitioner()(subject_key(subject, tenant), every, every)
    assert partition_of(subject, tenant, partitions) == expected


def test_key_is_tenant_slash_subject_in_utf8() -> None:
    assert subject_key("u-42", "acme") == b"acme/u-42"
    assert subject_key("u-42", None) == b"u-42"
    assert subject_key("ü", "é") == "é/ü".encode()


def test_partition_is_that_of_librdkafka() -> None:
    # librdkafka's partitioner is reached only by producing, so it produces: to the cluster that it runs in-process.
    producer = confluent_kafka.Producer({"test.mock.num.brokers": 1, "partitioner": "murmur2_random"})
    partitions = len(producer.list_topics("subjects", timeout=30).topics["subjects"].partitions)
    seeded = random.Random(7)
    subjects = [
        ("".join(seeded.choices("abü𝄞/-0", k=seeded.randint(1, 40))), seeded.choice([None, "acme"])) for _ in range(200)
    ]
    placed: dict[bytes | None, int | None] = {}

    def delivered(error: object, message: confluent_kafka.Message) -> None:
        assert error is None
        placed[message.key()] = message.partition()

    for subject, tenant in subjects:
        producer.produce("subjects", key=subject_key(subject, tenant), value=b"", on_delivery=delivered)
    assert producer.flush(30) == 0
    assert partitions > 1
    assert placed == {subject_key(*who): partition_of(*who, partitions) for who in subjects}
