"""`lapse topics`: create the topics, and compare them with the contract."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import typer

from lapse.pipeline.cli import flags
from lapse.pipeline.cli.command import FAILED, command, run_async, say
from lapse.pipeline.cli.options import Json
from lapse.pipeline.cli.output import print_json

if TYPE_CHECKING:
    from lapse.pipeline.operations.topics import TopicProblem
    from lapse.pipeline.settings import Settings

app = typer.Typer(
    help="Create the topics, and compare them with what Lapse relies on.", no_args_is_help=True, rich_markup_mode=None
)


@command(app, "apply", flags.TOPICS)
def apply(settings: Settings, json: Json = False) -> int:
    """Create the topics that are missing, and check the others.

    Nothing that exists is changed: if a topic is wrong, each problem is told with what to do, nothing is created, and
    the exit code is 1.
    """
    from lapse.pipeline.operations.topics import WrongTopics, apply_topics

    try:
        created = run_async(apply_topics(settings))
    except WrongTopics as wrong:
        return _tell(wrong.problems, as_json=json)
    for name in created:
        if json:
            print_json({"topic": name, "created": True})
        else:
            typer.echo(f"created {name}")
    say(f"every topic of {settings.prefix!r} at {settings.kafka} is as it must be")
    return 0


@command(app, "check", flags.TOPICS)
def check(settings: Settings, json: Json = False) -> int:
    """Compare the topics with what Lapse relies on: exit code 1 and a line each for what differs or is missing."""
    from lapse.pipeline.operations.topics import check_topics

    problems = run_async(check_topics(settings))
    if not problems:
        say(f"every topic of {settings.prefix!r} at {settings.kafka} is as it must be")
    return _tell(problems, as_json=json)


def _tell(problems: list[TopicProblem] | tuple[TopicProblem, ...], *, as_json: bool) -> int:
    for problem in problems:
        if as_json:
            print_json(dataclasses.asdict(problem))
        else:
            typer.echo(str(problem))
    return FAILED if problems else 0
