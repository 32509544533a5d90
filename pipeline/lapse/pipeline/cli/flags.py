"""Which settings can be given as flags, and to which commands?

A flag is a setting's name in dashes and wins over `LAPSE_<NAME>`, which wins over `lapse.toml`. The table repeats the
names, types and descriptions of `lapse.pipeline.settings.Settings`, which takes a third of a second to import, so that
help does not wait for it; a test compares the two. The keys are no flags: every user of a machine can read its
processes' arguments.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

__all__ = ["DIRECTORY", "EVERYTHING", "FLAGS", "LOG", "SIDECAR", "TOPICS", "parameters"]


class UnknownSessions(enum.StrEnum):
    """What a touch without a start does."""

    ADOPT = "adopt"
    REJECT = "reject"


class OnStale(enum.StrEnum):
    """What a stale guard does."""

    ALLOW = "allow"
    DENY = "deny"


class CookieForm(enum.StrEnum):
    """How an opaque cookie's value names the session id."""

    PLAIN = "plain"
    PERCENT = "percent"
    RAW = "raw"
    CONNECT = "connect"
    FLASK_SIGNED = "flask-signed"
    SPRING = "spring"


# Setting -> (type, help).
FLAGS: Final[dict[str, tuple[type, str]]] = {
    "directory": (Path, "where the local broker and the development key live"),
    "kafka": (str, "bootstrap servers, host:port, comma separated"),
    "prefix": (str, "what every topic's name begins with"),
    "partitions": (int, "partitions of the co-partitioned topics"),
    "replication": (int, "replicas; none: 1 on one broker, else 3"),
    "group": (str, "the workers' consumer group"),
    "worker": (str, "this worker's stable name (static membership)"),
    "unknown_sessions": (UnknownSessions, "what a touch without a start does"),
    "grace_ms": (int, "the time publishing a touch may take"),
    "gap_ms": (int, "a longer silence of the log is an outage"),
    "gap_grace_ms": (int, "how long idle endings are held after an outage"),
    "checkpoint_interval_ms": (int, "how often the state is checkpointed"),
    "age_max_ms": (int, "an older activity is taken as this old"),
    "ended_memory_ms": (int, "how long an ended session is known"),
    "sessions_max": (int, "live sessions a partition takes in, and as many ended ones"),
    "sessions_per_subject_max": (int, "live sessions that one subject may have"),
    "violation_after_ms": (int, "activity so long after its end is a violation"),
    "session_life_max_ms": (int, "no session lives longer; how long revocations are kept"),
    "metrics_port": (int, "where a worker serves Prometheus metrics; none: nowhere"),
    "metrics_address": (str, "the address it serves them on"),
}

# The sidecar's own, of `lapse.pipeline.sidecar_settings.SidecarSettings`: LAPSE_SIDECAR_<NAME>, the table [sidecar].
SIDECAR: Final[dict[str, tuple[type, str]]] = {
    "address": (str, "the address it listens on"),
    "port": (int, "the port it listens on"),
    "service": (str, "the name in touches and in the guard's reports"),
    "cookie": (str, "the cookie that is an opaque session id"),
    "cookie_form": (CookieForm, "how that cookie's value names the session id"),
    "subject_header": (str, "the trusted header that says an opaque cookie's subject"),
    "tenant_header": (str, "the trusted header that says its tenant"),
    "start_header": (str, "the trusted header that says its start, epoch ms"),
    "token_cookie": (str, "the cookie that holds a JWT"),
    "bearer": (bool, "whether a bearer token is taken, as a JWT"),
    "jwks": (str, "the keys of JWTs, a file or a URL"),
    "key_file": (Path, "or their one key: a public key (PEM, JWK) or a shared secret"),
    "algorithms": (str, "accepted signatures, comma separated; none: all that fit the keys"),
    "issuer": (str, "the issuer that a token must name"),
    "audience": (str, "the audience that a token must name"),
    "leeway_s": (int, "by how much an issuer's clock may differ"),
    "jwks_refresh_s": (int, "how often the keys are read anew"),
    "session_claims": (str, "the session id: the first of these claims that there is"),
    "subject_claim": (str, "the claim that is the subject"),
    "tenant_claim": (str, "the claim that is the tenant; none: tokens name none"),
    "start_claims": (str, "the session's start: the first of these claims; none: auth_time, or iat beside a jti alone"),
    "on_stale": (OnStale, "what a stale guard does"),
    "stale_routes": (str, "the same by path: PREFIX=allow|deny, comma separated"),
    "require_session": (bool, "whether a request without a session is refused"),
    "open_routes": (str, "path prefixes where it passes all the same, comma separated"),
    "stale_after_ms": (int, "the guard is stale when its knowledge has this age"),
    "touch_interval_ms": (int, "a session's touches are told at most so late"),
}

DIRECTORY: Final = ("directory", "kafka")
LOG: Final = ("kafka", "prefix", "directory")
TOPICS: Final = (*LOG, "partitions", "replication", "session_life_max_ms")
EVERYTHING: Final = tuple(FLAGS)


def parameters(names: Iterable[str], table: Mapping[str, tuple[type, str]] | None = None) -> list[inspect.Parameter]:
    """Return the flags of a table (FLAGS by default) as keyword parameters for typer, each None where not given."""
    table = FLAGS if table is None else table
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[table[name][0] | None, _option(name, *table[name])],
        )
        for name in names
    ]


def _option(name: str, kind: type[Any], about: str) -> Any:
    flag = name.replace("_", "-")
    if kind is bool:
        return typer.Option(f"--{flag}/--no-{flag}", help=f"Setting: {about}.")
    if issubclass(kind, enum.Enum):
        metavar = "|".join(member.value for member in kind)
    else:
        metavar = {str: "TEXT", int: "N", Path: "PATH"}[kind]
    return typer.Option(f"--{flag}", help=f"Setting: {about}.", metavar=metavar)
