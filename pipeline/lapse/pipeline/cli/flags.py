"""Which settings can be given as flags, and to which commands?

A flag is a setting's name in dashes and wins over `LAPSE_<NAME>`, which wins over `lapse.toml`. The table repeats the
names, types and descriptions of `lapse.pipeline.settings.Settings`, which takes a third of a second to import, so that
help does not wait for it; a test compares the two. The keys are no flags: every user of a machine can read its
processes' arguments.
"""

from __future__ import annotations

import enum
import inspect
from pathlib import Path
from typing import Annotated, Any, Final

import typer

__all__ = ["DIRECTORY", "EVERYTHING", "FLAGS", "LOG", "TOPICS", "parameters"]


class UnknownSessions(enum.StrEnum):
    """What a touch without a start does."""

    ADOPT = "adopt"
    REJECT = "reject"


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

DIRECTORY: Final = ("directory", "kafka")
LOG: Final = ("kafka", "prefix", "directory")
TOPICS: Final = (*LOG, "partitions", "replication", "session_life_max_ms")
EVERYTHING: Final = tuple(FLAGS)


def parameters(names: tuple[str, ...]) -> list[inspect.Parameter]:
    """Return the flags as keyword parameters for typer, each None where it is not given."""
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[FLAGS[name][0] | None, _option(name, *FLAGS[name])],
        )
        for name in names
    ]


def _option(name: str, kind: type[Any], about: str) -> Any:
    metavar = {str: "TEXT", int: "N", Path: "PATH"}.get(kind, "adopt|reject")
    return typer.Option("--" + name.replace("_", "-"), help=f"Setting: {about}.", metavar=metavar)
