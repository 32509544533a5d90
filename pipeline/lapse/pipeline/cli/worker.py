"""`lapse run`: a worker of the processor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from lapse.pipeline.cli import flags
from lapse.pipeline.cli.command import FAILED, command, say, usage

if TYPE_CHECKING:
    from lapse.pipeline.settings import Settings

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "run", flags.EVERYTHING)(run)


def run(settings: Settings) -> int:
    """Run a worker until it is told to stop (Ctrl-C, SIGTERM).

    Several workers share the partitions; each needs a name of its own (--worker), kept over restarts, and all the same
    LAPSE_WORKER_KEY. One that stops hands its partitions over at once; SIGHUP stops it for a restart under the same
    name, which the others do not notice. A worker does not start on topics that are missing or wrong: `lapse topics
    apply` makes them.
    """
    from lapse.pipeline.operations.topics import WrongTopics
    from lapse.pipeline.processor import worker
    from lapse.schemas.errors import ConfigError

    try:
        _ = settings.worker_key
    except ConfigError as refused:
        usage(str(refused))
    try:
        worker.run(settings)
    except WrongTopics as wrong:
        for problem in wrong.problems:
            say(f"lapse: {problem}")
        return FAILED
    return 0
