"""Goal: the broker that the tests and the demo get is one that Lapse can stand on, whichever way it came to be.

Method: the fixture's broker is asked, over the wire, for what the processor needs of it (append times by the broker's
clock, idempotent and transactional writes, offsets in a transaction, fencing), and for what would hide mistakes (topics
that come into being by themselves). The ways to start and end one are tried on real processes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource

from lapse.pipeline.broker import broker_status, docker, find_or_start, local, maven, record, start_broker, stop_broker
from lapse.pipeline.broker.probe import brokers_serving
from lapse.schemas.errors import RuntimeFault

from tests.brokers import Broker, make_topic

needs_java = pytest.mark.skipif(maven.find_java() is None, reason="this machine has no Java 17")

# A process that starts the broker of a directory, and says where it serves.
STARTING = (
    sys.executable,
    "-c",
    (
        "import sys, pathlib; from lapse.pipeline.broker import docker, start_broker; docker.engine = lambda: None; "
        "print(start_broker(pathlib.Path(sys.argv[1])).bootstrap)"
    ),
)


async def read_all(broker: Broker, topic: str, isolation: str, count: int) -> list[bytes | None]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest", isolation_level=isolation
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        async with asyncio.timeout(20):
            return [(await consumer.getone()).value for _ in range(count)]
    finally:
        await consumer.stop()


def test_the_broker_is_of_the_kind_that_was_asked_for(broker: Broker) -> None:
    wanted = os.environ.get("LAPSE_TEST_BROKER")
    assert wanted is None or broker.kind == wanted
    assert brokers_serving(broker.bootstrap) >= 1


async def test_the_broker_stamps_records_with_its_own_clock(broker: Broker, prefix: str) -> None:
    topic = f"{prefix}stamped"
    make_topic(broker, topic, config={"message.timestamp.type": "LogAppendTime"})
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap, acks="all", enable_idempotence=True) as producer:
        before_ms = time.time_ns() // 1_000_000
        sent = await producer.send_and_wait(topic, b"x", timestamp_ms=1_000)
        after_ms = time.time_ns() // 1_000_000
    assert sent.timestamp_type == 1
    # Same machine, same clock; a container's is the host's. A named broker may be elsewhere.
    assert broker.kind == "given" or before_ms - 1 <= sent.timestamp <= after_ms + 1


async def test_a_transaction_with_offsets_commits_and_an_aborted_one_is_never_seen(broker: Broker, prefix: str) -> None:
    topic, group = f"{prefix}state", f"{prefix}group"
    make_topic(broker, topic, config={"cleanup.policy": "compact"})
    place = TopicPartition(topic, 0)
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=f"{group}-0")
    await producer.start()
    try:
        async with asyncio.timeout(30):
            await producer.begin_transaction()
            await producer.send_and_wait(topic, b"aborted", b"k", partition=0)
            await producer.abort_transaction()
            async with producer.transaction():
                await producer.send_and_wait(topic, b"committed", b"k", partition=0)
                await producer.send_offsets_to_transaction({place: 7}, group)
    finally:
        await producer.stop()
    assert await read_all(broker, topic, "read_committed", 1) == [b"committed"]
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        assert await consumer.committed(place) == 7
    finally:
        await consumer.stop()


async def test_a_second_producer_of_the_same_transactional_id_fences_the_first(broker: Broker, prefix: str) -> None:
    topic = f"{prefix}fenced"
    make_topic(broker, topic)
    old = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=f"{prefix}id")
    new = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, transactional_id=f"{prefix}id")
    await old.start()
    try:
        await old.begin_transaction()
        await old.send_and_wait(topic, b"from before", partition=0)
        await new.start()  # fences `old` and aborts what it left open
        async with new.transaction():
            await new.send_and_wait(topic, b"from after", partition=0)
        with pytest.raises(Exception, match=r"(?i)fenced|epoch|producer"):
            await old.send_and_wait(topic, b"from a zombie", partition=0)
    finally:
        await new.stop()
        await old.stop()
    assert await read_all(broker, topic, "read_committed", 1) == [b"from after"]


def test_topics_do_not_come_into_being_by_themselves(broker: Broker) -> None:
    if broker.kind == "given":
        pytest.skip("a named broker is configured by its owner")
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    node = str(next(iter(admin.list_topics(timeout=10).brokers)))
    resource = ConfigResource(ConfigResource.Type.BROKER, node)
    config = next(iter(admin.describe_configs([resource]).values())).result(timeout=10)
    assert config["auto.create.topics.enable"].value == "false"


@needs_java
def test_asked_twice_there_is_one_broker_and_it_ends_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "engine", lambda: None)
    first = start_broker(tmp_path)
    try:
        second = start_broker(tmp_path)
        assert (first.started, second.started) == (True, False)
        assert second.bootstrap == first.bootstrap
        second.stop()  # found, not started: not its to end
        status = broker_status(tmp_path)
        assert status is not None
        assert (status.bootstrap, status.serving) == (first.bootstrap, 1)
        assert status.pid is not None
        pid = status.pid
    finally:
        first.stop()
    assert record.process_start(pid) is None
    assert broker_status(tmp_path) is None
    assert stop_broker(tmp_path) is None


@needs_java
def test_a_broker_that_is_only_busy_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "engine", lambda: None)
    first = start_broker(tmp_path)
    try:
        pid = (record.running(tmp_path) or pytest.fail("no record")).pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        unanswered: list[str] = []

        def asked(bootstrap: str) -> int:
            serving = brokers_serving(bootstrap)
            if serving == 0:
                unanswered.append(bootstrap)
                os.kill(pid, signal.SIGCONT)
            return serving

        monkeypatch.setattr(local, "brokers_serving", asked)
        second = start_broker(tmp_path)
        assert unanswered == [first.bootstrap]
        assert (second.started, second.bootstrap) == (False, first.bootstrap)
    finally:
        stop_broker(tmp_path, erase=True)


@needs_java
async def test_a_stopped_or_killed_broker_comes_back_with_its_address_and_its_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker, "engine", lambda: None)
    handle = start_broker(tmp_path)
    try:
        broker = Broker(handle.bootstrap, "maven")
        make_topic(broker, "kept")
        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap, acks="all") as producer:
            await producer.send_and_wait("kept", b"one")
        handle.stop()
        handle = start_broker(tmp_path)
        assert handle.bootstrap == broker.bootstrap
        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap, acks="all") as producer:
            await producer.send_and_wait("kept", b"two")
        pid = (record.running(tmp_path) or pytest.fail("no record")).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        handle = start_broker(tmp_path)
        assert handle.started
        assert await read_all(Broker(handle.bootstrap, "maven"), "kept", "read_uncommitted", 2) == [b"one", b"two"]
    finally:
        stop_broker(tmp_path, erase=True)
    assert not (tmp_path / "kafka").exists()


@needs_java
def test_the_broker_outlives_the_command_that_started_it(tmp_path: Path) -> None:
    done = subprocess.run([*STARTING, str(tmp_path)], capture_output=True, text=True, check=True, timeout=90)
    try:
        status = broker_status(tmp_path)
        assert status is not None
        assert (status.bootstrap, status.serving) == (done.stdout.strip(), 1)
    finally:
        stopped = stop_broker(tmp_path, erase=True)
    assert stopped is not None
    assert stopped.pid is not None
    assert record.process_start(stopped.pid) is None


@needs_java
def test_a_start_that_was_killed_leaves_a_broker_that_is_found(tmp_path: Path) -> None:
    maven.jars(lambda _: None)  # so that the start has nothing to fetch
    starting = subprocess.Popen([*STARTING, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        until = time.monotonic() + 90
        while record.running(tmp_path) is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        starting.kill()
        assert starting.communicate()[0] == b""  # it had not come to serve
        assert not start_broker(tmp_path).started
    finally:
        starting.kill()
        stopped = stop_broker(tmp_path, erase=True)
    assert stopped is not None
    assert stopped.pid is not None
    assert record.process_start(stopped.pid) is None


def test_a_pid_that_was_given_to_somebody_else_is_never_signalled(tmp_path: Path) -> None:
    started = record.process_start(os.getpid())
    assert started is not None
    foreign = record.BrokerRecord("maven", "127.0.0.1:1", os.getpid(), started - 1)
    record.write(tmp_path, foreign)
    assert record.running(tmp_path) is None
    stop_broker(tmp_path)  # would end this test run


def test_a_named_broker_is_taken_and_never_ended(broker: Broker, tmp_path: Path) -> None:
    handle = find_or_start(broker.bootstrap, tmp_path)
    assert (handle.bootstrap, handle.kind, handle.started) == (broker.bootstrap, "given", False)
    handle.stop(erase=True)
    assert brokers_serving(broker.bootstrap) >= 1


def test_a_named_broker_that_does_not_answer_is_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFault, match=r"LAPSE_KAFKA.*127\.0\.0\.1:1$"):
        find_or_start("127.0.0.1:1", tmp_path)


def test_with_nothing_there_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(RuntimeFault) as told:
        local.start_broker(tmp_path)
    assert str(told.value).count("\n") == 0
    for remedy in ("Docker", "JDK", "Maven", "LAPSE_KAFKA"):
        assert remedy in str(told.value)


def test_a_broker_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = maven.find_java()
    if java is None:
        pytest.skip("this machine has no Java 17")
    monkeypatch.setattr(docker, "engine", lambda: None)
    monkeypatch.setattr(maven, "_JVM_FLAGS", ("-Xmx1m",))
    with pytest.raises(RuntimeFault, match=r"(?i)heap|memory"):
        start_broker(tmp_path)
    assert broker_status(tmp_path) is None


def test_what_is_no_kafka_does_not_serve() -> None:
    assert brokers_serving("127.0.0.1:1", timeout_s=0.5) == 0
    assert brokers_serving("nonsense", timeout_s=0.5) == 0
