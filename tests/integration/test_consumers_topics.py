"""Do services leave it to `lapse topics apply` to make the topics?

Method: a real broker with `auto.create.topics.enable`, which is Kafka's default (a broker of Lapse's own has it off). A
service that starts before its topics are there waits for them, and makes none by asking.
"""

import contextlib
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from lapse.consumers import ActivityPublisher, Guard, session_reference
from lapse.pipeline.broker import docker, maven, start_broker, stop_broker
from lapse.pipeline.broker.properties import COMMON
from lapse.pipeline.settings import Settings
from lapse.schemas import TopicNames

from tests.consumers.support import until, writing

needs_java = pytest.mark.skipif(maven.find_java() is None, reason="this machine has no Java 17")


@needs_java
@pytest.mark.slow
async def test_a_service_waits_for_its_topics_and_makes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(docker, "engine", lambda: None)
    monkeypatch.setitem(COMMON, "auto.create.topics.enable", "true")
    with contextlib.ExitStack() as stack:
        stack.callback(stop_broker, tmp_path, erase=True)
        kafka = start_broker(tmp_path).bootstrap
        guard = Guard(kafka, service="shop", ready_timeout_s=1.0)
        async with ActivityPublisher(kafka, service="shop") as publisher, guard:
            publisher.started(session_reference("s"), "u")
            await until(lambda: publisher.stats.failures > 1, 30.0)
            assert "lapse topics apply" in str(guard.why_stale)
            assert "lapse.activity not found: run `lapse topics apply`" in caplog.text
            there = AdminClient({"bootstrap.servers": kafka, "log_level": 0}).list_topics(timeout=10).topics
            assert not {topic for topic in there if topic.startswith(TopicNames().prefix)}
            async with writing(Settings(kafka=kafka, partitions=2, directory=tmp_path)):
                assert await publisher.flush(30.0)
                await until(lambda: guard.fresh, 30.0)
