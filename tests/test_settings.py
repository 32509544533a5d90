"""Goal: what a person sets is what runs, and what cannot be is refused at start with what to do about it.

Method: real files and real environment variables in an empty directory; nothing is replaced.
"""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lapse.pipeline.broker import record
from lapse.pipeline.settings import KAFKA_DEFAULT, SECRETS, Settings, is_loopback
from lapse.schemas.errors import ConfigError


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAPSE_DIRECTORY")
    return tmp_path


def test_the_defaults_are_those_of_the_contract() -> None:
    settings = Settings()
    assert (settings.kafka, settings.prefix, settings.partitions, settings.replication) == (
        KAFKA_DEFAULT,
        "lapse.",
        8,
        None,
    )
    assert (settings.group, settings.unknown_sessions) == ("lapse.processor", "adopt")
    assert (settings.grace_ms, settings.gap_ms, settings.gap_grace_ms) == (250, 3_000, 5_000)
    assert (settings.checkpoint_interval_ms, settings.violation_after_ms) == (2_000, 2_000)
    assert settings.age_max_ms == settings.ended_memory_ms == 3_600_000
    assert settings.session_life_max_ms == 30 * 86_400_000
    assert settings.worker


def test_a_flag_wins_over_the_environment_and_that_over_the_file(
    empty_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_directory / "lapse.toml").write_text('gap_ms = 4001\ngrace_ms = 101\npartitions = 3\nprefix = "file."\n')
    monkeypatch.setenv("LAPSE_GRACE_MS", "102")
    monkeypatch.setenv("LAPSE_PARTITIONS", "4")
    settings = Settings(partitions=5, gap_grace_ms=None)
    assert (settings.gap_ms, settings.grace_ms, settings.partitions) == (4_001, 102, 5)
    assert settings.gap_grace_ms == 5_000, "a flag that was not given is no value"
    assert settings.group == "file.processor", "the group follows the prefix"


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAPSE_GRACE_MS", "")
    assert Settings().grace_ms == 250


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"grace_ms": -1}, "LAPSE_GRACE_MS=-1 is refused: must be a whole number from 0 to 60000"),
        ({"grace_ms": "soon"}, "LAPSE_GRACE_MS='soon' is refused: must be a whole number from 0 to 60000"),
        ({"gap_ms": 1_000}, "LAPSE_GAP_MS=1000 is refused: must be a whole number from 1001 to 3600000"),
        ({"partitions": 0}, "LAPSE_PARTITIONS=0 is refused: must be a whole number from 1 to 1024"),
        ({"replication": 99}, "LAPSE_REPLICATION=99 is refused: must be a whole number from 1 to 16"),
        ({"kafka": "nowhere"}, "LAPSE_KAFKA='nowhere' is refused: must be host:port, several separated by commas"),
        ({"prefix": "a b"}, "LAPSE_PREFIX='a b' is refused: must be at most 200 characters of A-Z a-z 0-9 . _ -"),
        ({"unknown_sessions": "drop"}, "LAPSE_UNKNOWN_SESSIONS='drop' is refused: Input should be 'adopt' or 'reject'"),
        ({"worker_key": "short"}, "LAPSE_WORKER_KEY is refused: must have at least 16 bytes"),
        ({"reference_key": "short"}, "LAPSE_REFERENCE_KEY is refused: must have at least 16 bytes"),
        ({"partition": 3}, "there is no setting partition"),
    ],
)
def test_a_refusal_names_the_setting_the_value_and_what_is_allowed(given: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Settings(**given)
    assert str(refused.value) == told


def test_the_file_is_held_to_the_same(empty_directory: Path) -> None:
    (empty_directory / "lapse.toml").write_text("grase_ms = 3\n")
    with pytest.raises(ConfigError, match="there is no setting grase_ms"):
        Settings()
    (empty_directory / "lapse.toml").write_text("grace_ms = \n")
    with pytest.raises(ConfigError, match=r"^lapse\.toml cannot be read: "):
        Settings()


def test_the_default_broker_is_the_one_that_runs_here(empty_directory: Path) -> None:
    here = empty_directory / ".lapse"
    started = record.process_start(os.getpid())
    record.write(here, record.BrokerRecord("maven", "127.0.0.1:12345", os.getpid(), started))
    assert Settings().kafka == "127.0.0.1:12345"
    assert started is not None
    record.write(here, record.BrokerRecord("maven", "127.0.0.1:12345", os.getpid(), started - 1))
    assert Settings().kafka == KAFKA_DEFAULT, "that process has ended, and its pid is another's"
    (here / "broker.json").write_text('{"kind": "ma')
    assert Settings().kafka == KAFKA_DEFAULT


KEYS = ("worker_key", "reference_key")


@pytest.mark.parametrize("source", ["flag", "bytes", "environment", "file"])
@pytest.mark.parametrize("name", KEYS)
def test_a_key_is_the_same_bytes_wherever_it_is_given(
    name: str, source: str, empty_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "correct horse battery staple"
    if source == "environment":
        monkeypatch.setenv(f"LAPSE_{name.upper()}", text + "\n")
    if source == "file":
        (empty_directory / "lapse.toml").write_text(f'{name} = "{text}"\n')
    given: dict[str, dict[str, object]] = {"flag": {name: text}, "bytes": {name: text.encode()}}
    settings = Settings(kafka="broker.example:9092", **given.get(source, {}))
    assert getattr(settings, name) == text.encode()
    assert text not in repr(settings)


@pytest.mark.parametrize("source", ["argument", "environment", "file"])
@pytest.mark.parametrize("name", sorted(set(SECRETS) - set(KEYS)))
def test_what_else_is_secret_is_no_flag_and_shown_nowhere(
    name: str, source: str, empty_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "redis://:hunter2-hunter2@redis:6379/0"
    if source == "environment":
        monkeypatch.setenv(SECRETS[name], text + "\n")
    if source == "file":
        (empty_directory / "lapse.toml").write_text(f'{name} = "{text}"\n')
    settings = Settings(**({name: text} if source == "argument" else {}))
    assert text in {settings.store, *settings.webhook_secrets}
    assert "hunter2" not in repr(settings)


def test_references_have_no_key_unless_one_is_given() -> None:
    assert Settings().reference_key is None


def test_a_development_key_is_made_once_and_only_for_oneself(empty_directory: Path) -> None:
    settings = Settings()
    path = empty_directory / ".lapse" / "worker.key"
    assert not path.exists(), "a command that signs nothing makes no key"
    key = settings.worker_key
    assert len(key) >= 32
    assert Settings().worker_key == key == path.read_bytes().strip()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["worker.key"]


def _key(directory: Path) -> bytes:
    return Settings(directory=directory).worker_key


def test_workers_that_start_together_get_the_same_development_key(empty_directory: Path) -> None:
    # Threads, for the race is between two looks at the file system, and these are closer together than processes.
    with ThreadPoolExecutor(8) as pool:
        for turn in range(20):
            assert len(set(pool.map(_key, [empty_directory / str(turn)] * 8))) == 1


def test_no_key_is_made_where_others_reach_the_log(empty_directory: Path) -> None:
    settings = Settings(kafka="broker.example:9092")  # an operator's command needs none
    with pytest.raises(ConfigError, match=r"LAPSE_WORKER_KEY is not set.*broker\.example:9092"):
        _ = settings.worker_key
    assert not (empty_directory / ".lapse").exists()


def test_a_damaged_development_key_is_told(empty_directory: Path) -> None:
    (empty_directory / ".lapse").mkdir()
    (empty_directory / ".lapse" / "worker.key").write_text("x")
    with pytest.raises(ConfigError, match=r"worker\.key has 1 bytes, at least 16 are needed: remove it"):
        _ = Settings().worker_key


@pytest.mark.parametrize(
    ("servers", "local"),
    [
        ("127.0.0.1:9092", True),
        ("127.8.8.8:1,localhost:2", True),
        ("[::1]:9092", True),
        ("10.0.0.1:9092", False),
        ("127.0.0.1:9092,broker:9092", False),
        ("localhost.example:9092", False),
        ("0.0.0.0:9092", False),
    ],
)
def test_loopback_is_this_machine_alone(servers: str, local: bool) -> None:
    assert is_loopback(servers) is local


def test_settings_do_not_change_once_made() -> None:
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.grace_ms = 3  # type: ignore[misc]  # what a reader of the settings must not be able to do
