"""What every test may ask for: a real broker, a topic prefix of its own, settings that name both.

One broker serves the whole session (a start costs three seconds); tests keep apart by their topics' prefix. A machine
without any way to a broker fails the tests that need one, with the sentence that says what to install: a skipped test
proves nothing.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from lapse.pipeline.settings import Settings
from lapse.schemas.errors import LapseError

from tests.brokers import Broker, remove_topics, serving

# Whoever runs the tests may have settings of their own in the environment. They are no part of what is tested.
_NAMED_KAFKA = os.environ.get("LAPSE_KAFKA")
_OF_THE_TESTS = {"LAPSE_TEST_BROKER"}

# More than one, so that placing by subject matters; few, since each costs the broker a log of each topic.
PARTITIONS = 4


def pytest_configure() -> None:
    for name in [name for name in os.environ if name.startswith("LAPSE_") and name not in _OF_THE_TESTS]:
        del os.environ[name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "broker" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.broker)


@pytest.fixture(scope="session", autouse=True)
def nothing_of_this_checkout(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep away from the `.lapse` that whoever runs the tests may be using: its broker, its key."""
    os.environ["LAPSE_DIRECTORY"] = str(tmp_path_factory.mktemp("lapse"))


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """Undo what a command that ran within the test did to the logs: its standard error is closed by now."""
    before = list(logging.root.handlers)
    yield
    structlog.reset_defaults()
    for handler in logging.root.handlers[:]:
        if type(handler) is logging.StreamHandler and handler not in before:
            logging.root.removeHandler(handler)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A real broker: LAPSE_KAFKA, else Docker's, else Java's."""
    manager = serving(tmp_path_factory.mktemp("broker"), _NAMED_KAFKA)
    try:
        found = manager.__enter__()
    except LapseError as fault:
        pytest.fail(str(fault), pytrace=False)
    try:
        yield found
    finally:
        manager.__exit__(None, None, None)


@pytest.fixture
def prefix(broker: Broker) -> Iterator[str]:
    """A topic prefix that no other test has; its topics are removed afterwards."""
    own = f"t{secrets.token_hex(4)}."
    yield own
    remove_topics(broker, own)


@pytest.fixture
def settings(broker: Broker, prefix: str, tmp_path: Path) -> Settings:
    """Settings for this test's own topics on the broker. Others: `settings.model_copy(update={...})`."""
    return Settings(
        kafka=broker.bootstrap,
        prefix=prefix,
        partitions=PARTITIONS,
        replication=1,
        worker="test-worker",
        worker_key=secrets.token_urlsafe(32),
        directory=tmp_path / ".lapse",
    )
