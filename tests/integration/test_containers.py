"""Goal: `lapse broker up` and `down` work with a Docker engine as they do with Java.

Method: the real engine, by `make test-containers`; elsewhere these are left out, for the rest of the suite then runs on
whatever broker there is. That the three ways configure the broker alike needs no engine.
"""

from __future__ import annotations

import asyncio
import re
from asyncio.subprocess import DEVNULL
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from lapse.pipeline.broker import broker_status, docker, record, start_broker, stop_broker
from lapse.pipeline.broker.files import infra
from lapse.pipeline.broker.properties import IMAGE, container_environment, properties

from tests.brokers import Broker, make_topic
from tests.integration.test_broker import read_all


@pytest.mark.docker
async def test_a_container_is_started_once_and_keeps_its_records_until_they_are_erased(tmp_path: Path) -> None:
    command = docker.engine()
    assert command is not None
    handle = start_broker(tmp_path)
    try:
        found = record.read(tmp_path)
        assert found is not None
        assert found.container is not None
        assert (handle.kind, handle.started) == ("docker", True)
        assert not start_broker(tmp_path).started
        broker = Broker(handle.bootstrap, "docker")
        make_topic(broker, "kept")
        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap, acks="all") as producer:
            await producer.send_and_wait("kept", b"one")
        handle.stop()
        assert broker_status(tmp_path) is None
        assert not docker.container_is_running(command, found.container)
        again = start_broker(tmp_path)
        assert await read_all(Broker(again.bootstrap, "docker"), "kept", "read_uncommitted", 1) == [b"one"]
    finally:
        stop_broker(tmp_path, erase=True)
    for kind in ("container", "volume"):
        asked = await asyncio.create_subprocess_exec(
            command, kind, "inspect", found.container, stdout=DEVNULL, stderr=DEVNULL
        )
        assert await asked.wait() != 0, f"a {kind} was left behind"


def test_compose_configures_the_broker_as_the_program_does() -> None:
    text = infra("compose.yaml").read_text(encoding="utf-8")
    written = dict(re.findall(r'^      ([A-Z_]+): "(.*)"$', text, re.MULTILINE))
    assert written == container_environment("127.0.0.1:${LAPSE_BROKER_PORT:-9092}")
    assert f"image: {IMAGE}\n" in text


def test_the_pom_names_the_version_of_the_image() -> None:
    assert f"<kafka.version>{IMAGE.split(':')[1]}</kafka.version>" in infra("pom.xml").read_text(encoding="utf-8")


def test_a_container_differs_from_a_process_only_in_its_addresses() -> None:
    process = properties(listen="a:1", advertised="a:1", controller="a:2", data="/d")
    container = properties(listen="a:1", advertised="a:1", controller="a:2", data="/d", inside="b:3")
    differing = {name for name in container if process.get(name) != container[name]}
    assert differing == {
        "listeners",
        "advertised.listeners",
        "inter.broker.listener.name",
        "listener.security.protocol.map",
    }
