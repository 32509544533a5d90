"""`lapse demo`: everything at once, with simulated people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lapse.pipeline.cli import flags
from lapse.pipeline.cli.command import command

if TYPE_CHECKING:
    from lapse.pipeline.settings import Settings

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "demo", flags.EVERYTHING)(demo)


def demo(
    settings: Settings,
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=1, metavar="N", help="End after so long, with a summary.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as one object, the last line.")] = False,
) -> int:
    """Show Lapse at work, from login to refusal.

    A real broker, a worker, two services, and a few hundred people who use them: only the people are simulated. It
    ends with Ctrl-C or after --seconds, and leaves nothing behind.
    """
    from lapse.pipeline.demo import run_demo

    return run_demo(settings, seconds, json) or 0
