"""What is this process told to do, and by whom?

Each setting by a flag, a variable `LAPSE_<NAME>`, or a line of `lapse.toml` (three_places.py). Two defaults depend on
what is there: `kafka` is the broker that `lapse broker up` started, and `worker_key` is made once for development,
which is safe only where nobody else can reach the log.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import socket
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AliasChoices, Field, SecretStr, StringConstraints, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import SettingsConfigDict

from lapse.pipeline.broker import record
from lapse.pipeline.three_places import ThreePlaces
from lapse.schemas.errors import ConfigError

__all__ = ["KAFKA_DEFAULT", "KEY_LENGTH_MIN", "SECRETS", "SIDECAR_TABLE", "Settings", "is_loopback"]

KAFKA_DEFAULT: Final = "127.0.0.1:9092"
SIDECAR_TABLE: Final = "sidecar"

# 16 bytes are 128 bits where a key is random; NIST SP 800-107 asks 112 of an HMAC key. Made ones have 256.
KEY_LENGTH_MIN: Final = 16
_KEY_FILE: Final = "worker.key"

SECRETS: Final = {
    "worker_key": "LAPSE_WORKER_KEY",
    "reference_key": "LAPSE_REFERENCE_KEY",
    "store": "LAPSE_STORE",
    "webhook_secret": "LAPSE_WEBHOOK_SECRET",
}
"""What is no flag, since every user of a machine can read its processes' arguments, and shown in no message."""

_DAY_MS: Final = 86_400_000

# Kafka allows 249 characters in a topic's name; the longest of ours ("dead-letters") leaves 237.
TopicPrefix = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{0,200}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256, strip_whitespace=True)]


class Settings(ThreePlaces):
    """Everything a worker or an operator's command can be told. Frozen; raises `ConfigError` for what it refuses."""

    model_config = SettingsConfigDict(env_prefix="LAPSE_", validate_default=True)

    directory: Path = Field(Path(".lapse"), description="where the local broker and the development key live")
    kafka: Name = Field(
        default_factory=lambda data: _local_broker(data.get("directory")),
        description="bootstrap servers, host:port, comma separated",
    )
    prefix: TopicPrefix = Field("lapse.", description="what every topic's name begins with")
    # A worker keeps one transactional producer a partition (64 of them: 272 sockets, 24 MB; measured).
    partitions: int = Field(8, ge=1, le=1024, description="partitions of the co-partitioned topics")
    replication: int | None = Field(None, ge=1, le=16, description="replicas; none: 1 on one broker, else 3")
    group: Name = Field(
        default_factory=lambda data: f"{data.get('prefix', 'lapse.')}processor",
        description="the workers' consumer group",
    )
    worker: Name = Field(
        default_factory=socket.gethostname, description="this worker's stable name (static membership)"
    )
    unknown_sessions: Literal["adopt", "reject"] = Field("adopt", description="what a touch without a start does")
    worker_key_given: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("LAPSE_WORKER_KEY"),
        description="the key that control records are signed with",
    )
    reference_key_given: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("LAPSE_REFERENCE_KEY"),
        description="the key that services make session references with; none: plain hashes",
    )
    store_given: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("LAPSE_STORE"),
        description="where an applier ends sessions: redis://, postgresql:// or sqlite:///path, with its password",
    )
    webhook_secret_given: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("LAPSE_WEBHOOK_SECRET"),
        description="what webhooks are signed with: whsec_...; several, separated by spaces, while they are changed",
    )
    grace_ms: int = Field(250, ge=0, le=60_000, description="the time publishing a touch may take")
    # Ticks come once a second: a gap below that would hold every idle ending for ever.
    gap_ms: int = Field(3_000, ge=1_001, le=3_600_000, description="a longer silence of the log is an outage")
    gap_grace_ms: int = Field(5_000, ge=0, le=3_600_000, description="how long idle endings are held after an outage")
    checkpoint_interval_ms: int = Field(2_000, ge=100, le=60_000, description="how often the state is checkpointed")
    age_max_ms: int = Field(3_600_000, ge=1_000, le=_DAY_MS, description="an older activity is taken as this old")
    ended_memory_ms: int = Field(3_600_000, ge=1_000, le=30 * _DAY_MS, description="how long an ended session is known")
    violation_after_ms: int = Field(
        2_000, ge=0, le=3_600_000, description="activity so long after its end is a violation"
    )
    session_life_max_ms: int = Field(
        30 * _DAY_MS,
        ge=60_000,
        le=3_660 * _DAY_MS,
        description="no session lives longer; how long revocations are kept",
    )
    sessions_max: int = Field(
        1_000_000, ge=1_000, le=100_000_000, description="live sessions a partition takes in, and as many ended ones"
    )
    sessions_per_subject_max: int = Field(
        1_000, ge=1, le=1_000_000, description="live sessions that one subject may have"
    )
    metrics_port: int | None = Field(
        None, ge=1, le=65_535, description="where a worker serves Prometheus metrics; none: nowhere"
    )
    metrics_address: Name = Field("127.0.0.1", description="the address it serves them on")

    def __init__(self, **flags: Any) -> None:
        for name, variable in SECRETS.items():
            if (key := flags.pop(name, None)) is not None:
                flags[variable] = key.decode("utf-8") if isinstance(key, bytes) else key
        super().__init__(**flags)

    @field_validator("kafka")
    @classmethod
    def _kafka_is_servers(cls, value: str) -> str:
        for server in value.split(","):
            host, _, port = server.strip().rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
                raise ValueError("must be host:port, several separated by commas")
        return value

    @field_validator("worker_key_given", "reference_key_given")
    @classmethod
    def _key_is_long(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value().strip().encode()) < KEY_LENGTH_MIN:
            raise ValueError(f"must have at least {KEY_LENGTH_MIN} bytes")
        return value

    @property
    def worker_key(self) -> bytes:
        """The key of the workers' control records: the UTF-8 bytes of `LAPSE_WORKER_KEY`.

        Without one, and with a broker on loopback, a random key is made once in `<directory>/worker.key` and used by
        all workers of this directory. Elsewhere there is no safe default.

        Raises:
            ConfigError: no key is given and the broker is not on loopback.
        """
        if self.worker_key_given is not None:
            return self.worker_key_given.get_secret_value().strip().encode()
        if not is_loopback(self.kafka):
            raise ConfigError(
                f"LAPSE_WORKER_KEY is not set, and the broker {self.kafka} is not on this machine: give every worker "
                f"of the group the same secret of at least {KEY_LENGTH_MIN} bytes "
                "(one is made by: openssl rand -base64 32)"
            )
        return _development_key(self.directory)

    @property
    def reference_key(self) -> bytes | None:
        """The estate's key of session references: the UTF-8 bytes of `LAPSE_REFERENCE_KEY`; None: there is none."""
        given = self.reference_key_given
        return None if given is None else given.get_secret_value().strip().encode()

    @property
    def store(self) -> str | None:
        """Where an applier ends sessions, `LAPSE_STORE`; None: it is not told."""
        given = self.store_given
        return None if given is None else given.get_secret_value().strip()

    @property
    def webhook_secrets(self) -> list[str]:
        """What webhooks are signed with, `LAPSE_WEBHOOK_SECRET`."""
        given = self.webhook_secret_given
        return [] if given is None else given.get_secret_value().split()

    @classmethod
    def _of_file(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return all but the sidecar's table, the keys under the names of their variables."""
        return {SECRETS.get(name, name): value for name, value in values.items() if name != SIDECAR_TABLE}

    @classmethod
    def _explain(cls, error: ErrorDetails) -> str:
        name = str(error["loc"][0]) if error["loc"] else "settings"
        variable = name if name.startswith("LAPSE_") else f"LAPSE_{name.upper()}"
        if error["type"] == "extra_forbidden":
            return f"there is no setting {name}"
        shown = "" if variable in SECRETS.values() else f"={error['input']!r}"
        field = cls.model_fields.get(name)
        bounds = [] if field is None else field.metadata
        low = next((rule.ge for rule in bounds if hasattr(rule, "ge")), None)
        high = next((rule.le for rule in bounds if hasattr(rule, "le")), None)
        if low is not None and high is not None:
            allowed = f"must be a whole number from {low} to {high}"
        elif error["type"] == "string_pattern_mismatch":
            allowed = "must be at most 200 characters of A-Z a-z 0-9 . _ -"
        else:
            allowed = error["msg"].removeprefix("Value error, ")
        return f"{variable}{shown} is refused: {allowed}"


def is_loopback(servers: str) -> bool:
    """Return whether every one of the comma separated `host:port` is an address of this machine alone."""

    def local(server: str) -> bool:
        host = server.strip().rpartition(":")[0].strip("[]")
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    return all(map(local, servers.split(",")))


def _local_broker(directory: Path | None) -> str:
    found = record.running(directory) if directory is not None else None
    return KAFKA_DEFAULT if found is None else found.bootstrap


def _development_key(directory: Path) -> bytes:
    """Return the key in `worker.key`, made by whoever asks first; workers that start together get the same one."""
    path = directory / _KEY_FILE
    directory.mkdir(parents=True, exist_ok=True)
    # Written aside and linked into place: link() fails if the name exists, and nobody ever reads half a key.
    draft = directory / f"{_KEY_FILE}.{secrets.token_hex(4)}"
    try:
        if not path.exists():
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
                file.write(secrets.token_urlsafe(32) + "\n")
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        key = path.read_bytes().strip()
    except OSError as broken:
        raise ConfigError(
            f"the development key {path} cannot be read or made: {broken}; set LAPSE_WORKER_KEY"
        ) from None
    finally:
        draft.unlink(missing_ok=True)
    if len(key) < KEY_LENGTH_MIN:
        raise ConfigError(
            f"the development key {path} has {len(key)} bytes, at least {KEY_LENGTH_MIN} are needed: remove it"
        )
    return key
