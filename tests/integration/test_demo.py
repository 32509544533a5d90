"""Does the demo show what it says, and leave nothing behind? The command itself, on a real broker.

A short run: the figures that must be zero are zero however short it is. What it must reach in speed is for an idle
machine and `make demo`, not for a test that shares one with others.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import psutil  # type: ignore[import-untyped]  # it ships no types; pyperf brings it
import pytest
from confluent_kafka.admin import AdminClient

from tests.brokers import Broker

pytestmark = pytest.mark.slow

SECONDS = 8
START_TIMEOUT_S = 90.0
END_TIMEOUT_S = 90.0
POLL_S = 0.1


class _Demo:
    """`lapse demo` as a process, with a temporary directory that nothing else uses."""

    def __init__(self, directory: Path, broker: Broker | None, *arguments: str) -> None:
        self.scratch = directory / "scratch"
        self.scratch.mkdir()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LAPSE_")}
        environment["TMPDIR"] = str(self.scratch)
        if broker is not None:
            environment["LAPSE_KAFKA"] = broker.bootstrap
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lapse.pipeline.cli", "demo", *arguments],
            cwd=directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def family(self) -> list[psutil.Process]:
        """Return all its processes but itself: those that it started, and their own."""
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    def finished(self) -> tuple[int, str, str]:
        """Return its exit code and what it said, once it has ended."""
        out, err = self.process.communicate(timeout=START_TIMEOUT_S + END_TIMEOUT_S)
        return self.process.returncode, out.decode(), err.decode()

    def wait_until_people_act(self) -> list[psutil.Process]:
        """Return its processes once a service has let something pass."""
        until = time.monotonic() + START_TIMEOUT_S
        while not any(path.stat().st_size for path in self.scratch.glob("lapse-demo-*/shop.jsonl")):
            assert self.process.poll() is None, self.finished()
            assert time.monotonic() < until, "nobody came"
            time.sleep(POLL_S)
        return self.family()


@pytest.fixture
def started() -> Iterator[list[_Demo]]:
    demos: list[_Demo] = []
    yield demos
    for demo in demos:
        if demo.process.poll() is None:
            family = demo.family()
            demo.process.kill()
            for process in family:
                process.kill()
        demo.process.communicate()


def _topics_of_demos(broker: Broker) -> list[str]:
    admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})
    return [topic for topic in admin.list_topics(timeout=10).topics if topic.startswith("demo-")]


def _assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive


def test_the_demo_on_a_named_broker_shows_what_it_must_and_leaves_nothing(
    broker: Broker, tmp_path: Path, started: list[_Demo]
) -> None:
    demo = _Demo(tmp_path, broker, "--seconds", str(SECONDS), "--json")
    started.append(demo)
    family = demo.wait_until_people_act()
    code, out, err = demo.finished()

    assert code == 0, err
    *before, last = out.splitlines()
    assert not before
    shown = orjson.loads(last)
    assert set(shown) == {
        "sessions",
        "endings",
        "early",
        "missed",
        "accepted_after_end",
        "lateness_ms",
        "propagation_ms",
        "refused",
    }
    assert (shown["early"], shown["missed"], shown["accepted_after_end"]) == (0, 0, 0)
    assert shown["sessions"] >= 100
    assert set(shown["endings"]) == {"idle", "absolute", "revoked", "closed"}
    assert shown["endings"]["idle"] > 0
    assert shown["endings"]["revoked"] > 0
    assert shown["endings"]["closed"] > 0
    for figure in ("lateness_ms", "propagation_ms"):
        assert 0 < shown[figure]["p50"] <= shown[figure]["p99"]

    _assert_gone(family)
    assert list(demo.scratch.iterdir()) == []
    assert list(tmp_path.iterdir()) == [demo.scratch]
    assert _topics_of_demos(broker) == []


def test_ctrl_c_ends_the_demo_with_a_summary_and_its_own_broker_with_it(tmp_path: Path, started: list[_Demo]) -> None:
    demo = _Demo(tmp_path, None)
    started.append(demo)
    family = demo.wait_until_people_act()
    assert any(process.name() == "java" for process in family) or os.environ.get("LAPSE_TEST_BROKER") == "docker"
    demo.process.send_signal(signal.SIGINT)
    code, out, err = demo.finished()

    assert code == 0, err
    assert "ended early" in out
    _assert_gone(family)
    assert list(demo.scratch.iterdir()) == []
    assert list(tmp_path.iterdir()) == [demo.scratch]


def test_ctrl_c_before_anybody_came_leaves_nothing(broker: Broker, tmp_path: Path, started: list[_Demo]) -> None:
    demo = _Demo(tmp_path, broker, "--json")
    started.append(demo)
    until = time.monotonic() + START_TIMEOUT_S
    while not (family := demo.family()):
        assert demo.process.poll() is None, demo.finished()
        assert time.monotonic() < until
        time.sleep(POLL_S)
    demo.process.send_signal(signal.SIGINT)
    code, out, err = demo.finished()

    assert code == 130, err
    assert out == ""
    _assert_gone(family)
    assert list(demo.scratch.iterdir()) == []
    assert _topics_of_demos(broker) == []


def test_a_worker_that_dies_ends_the_demo_and_is_named(broker: Broker, tmp_path: Path, started: list[_Demo]) -> None:
    demo = _Demo(tmp_path, broker)
    started.append(demo)
    family = demo.wait_until_people_act()
    next(process for process in family if "run" in process.cmdline()).kill()
    code, _, err = demo.finished()

    assert code == 1
    assert "worker ended by itself" in err
    _assert_gone(family)
    assert list(demo.scratch.iterdir()) == []
    assert _topics_of_demos(broker) == []


def test_a_broker_that_does_not_answer_is_said(tmp_path: Path, started: list[_Demo]) -> None:
    demo = _Demo(tmp_path, Broker("127.0.0.1:1", "given"), "--json")
    started.append(demo)
    code, out, err = demo.finished()
    assert (code, out) == (1, "")
    assert "127.0.0.1:1" in err
    assert "Traceback" not in err
