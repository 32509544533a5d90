"""`lapse broker`: a Kafka broker on this machine, for development and the demo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lapse.pipeline.cli import flags
from lapse.pipeline.cli.command import FAILED, command, fail, say
from lapse.pipeline.cli.options import Json
from lapse.pipeline.cli.output import print_json

if TYPE_CHECKING:
    from lapse.pipeline.settings import Settings

app = typer.Typer(
    help="Start, stop and look at a Kafka broker on this machine.", no_args_is_help=True, rich_markup_mode=None
)


def _named(settings: Settings) -> str | None:
    """Return the broker that the user named, or None if the one of this directory is meant."""
    return settings.kafka if "kafka" in settings.model_fields_set else None


@command(app, "up", flags.DIRECTORY)
def up(settings: Settings, json: Json = False) -> None:
    """Make sure that a broker serves, and print where.

    The first that is there: a broker that is named (--kafka, LAPSE_KAFKA), Docker, or Java 17 with Maven. One that was
    started here goes on until `lapse broker down`; its data is kept in the directory.
    """
    from lapse.pipeline.broker import find_or_start

    handle = find_or_start(_named(settings), settings.directory, say)
    if json:
        print_json({"kind": handle.kind, "bootstrap": handle.bootstrap, "started": handle.started})
    else:
        typer.echo(handle.bootstrap)


@command(app, "down", flags.DIRECTORY)
def down(
    settings: Settings,
    erase: Annotated[bool, typer.Option("--erase", help="Delete its topics and records too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before erasing.")] = False,
) -> None:
    """Stop the broker that `lapse broker up` started here."""
    from lapse.pipeline.broker import stop_broker
    from lapse.pipeline.cli.asking import confirm

    if erase:
        confirm(f"Stop the broker in {settings.directory} and delete all its topics and records?", yes=yes)
    ended = stop_broker(settings.directory, erase=erase)
    say("no broker was running here" if ended is None else f"stopped the broker at {ended.bootstrap}")


@command(app, "status", flags.DIRECTORY)
def status(settings: Settings, json: Json = False) -> int:
    """Say whether a broker serves: exit code 0 if it does, else 1."""
    found = _status(settings)
    if found is None:
        if json:
            print_json({"kind": None, "bootstrap": None, "pid": None, "serving": 0})
        fail(f"no broker runs in {settings.directory}: start one with `lapse broker up`")
    if json:
        print_json(found)
    else:
        answer = f"serves, brokers: {found['serving']}" if found["serving"] else "does not answer"
        process = f", process {found['pid']}" if found["pid"] is not None else ""
        typer.echo(f"{found['bootstrap']} {answer}; {found['kind']}{process}")
    return 0 if found["serving"] else FAILED


def _status(settings: Settings) -> dict[str, Any] | None:
    from lapse.pipeline.broker import broker_status

    if (named := _named(settings)) is not None:
        from lapse.pipeline.broker.probe import brokers_serving

        return {"kind": "given", "bootstrap": named, "pid": None, "serving": brokers_serving(named)}
    found = broker_status(settings.directory)
    if found is None:
        return None
    return {"kind": found.kind, "bootstrap": found.bootstrap, "pid": found.pid, "serving": found.serving}
