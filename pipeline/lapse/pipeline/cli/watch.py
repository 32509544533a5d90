"""`lapse watch`: the endings, as they happen."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Annotated

import typer

from lapse.pipeline.cli.command import command, run_async, say, usage
from lapse.pipeline.cli.durations import BadDuration, parse_duration
from lapse.pipeline.cli.options import Json, text_option
from lapse.pipeline.cli.output import clock, print_json, printable

if TYPE_CHECKING:
    from lapse.pipeline.operations.watch import Ending
    from lapse.pipeline.settings import Settings

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "watch")(watch)


def watch(
    settings: Settings,
    since: Annotated[
        str | None, typer.Option("--since", metavar="DURATION", help="Begin with the endings of the last 10m, 8h, ...")
    ] = None,
    cause: Annotated[
        list[str] | None,
        text_option("--cause", "Only endings of this cause: idle, absolute, revoked or closed; may be repeated."),
    ] = None,
    subject: Annotated[str | None, text_option("--subject", "Only this subject's endings.")] = None,
    tenant: Annotated[str | None, text_option("--tenant", "Only this tenant's endings.")] = None,
    count: Annotated[int | None, typer.Option("--count", min=1, metavar="N", help="End after so many.")] = None,
    json: Json = False,
) -> None:
    """Print each ending of a session as it is appended, until Ctrl-C.

    A line has the time of the append, the cause, the session's reference, tenant and subject, the policy, and how long
    after it was due the ending stood in the log.
    """
    since_ms = _since(since)
    chosen = _Choice(_causes(cause), subject, tenant)
    with contextlib.suppress(KeyboardInterrupt):
        run_async(_watch(settings, since_ms, chosen, count, as_json=json))


class _Choice:
    """Which endings are asked for."""

    def __init__(self, causes: frozenset[str], subject: str | None, tenant: str | None) -> None:
        self._causes = causes
        self._subject = subject
        self._tenant = tenant

    def __contains__(self, ending: Ending) -> bool:
        ended = ending.ended
        return (
            (not self._causes or ended.cause in self._causes)
            and self._subject in (None, ended.subject)
            and self._tenant in (None, ended.tenant)
        )


def _since(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return time.time_ns() // 1_000_000 - parse_duration(text)
    except BadDuration as bad:
        usage(f"--since: {bad}")


def _causes(names: list[str] | None) -> frozenset[str]:
    from lapse.schemas import Cause

    unknown = sorted(set(names or ()) - set(Cause))
    if unknown:
        usage(f"--cause: there is no cause {unknown[0]!r}; there are {', '.join(Cause)}")
    return frozenset(names or ())


async def _watch(
    settings: Settings, since_ms: int | None, chosen: _Choice, count: int | None, *, as_json: bool
) -> None:
    from lapse.pipeline.operations.watch import watch_endings

    def ready() -> None:
        say(f"watching {settings.prefix}expiries at {settings.kafka}; Ctrl-C ends")

    shown = 0
    async with contextlib.aclosing(watch_endings(settings, since_ms=since_ms, ready=ready)) as endings:
        async for ending in endings:
            if ending not in chosen:
                continue
            if as_json:
                print_json(_row(ending))
            else:
                typer.echo(_line(ending))
            shown += 1
            if shown == count:
                return


def _row(ending: Ending) -> dict[str, object]:
    where = {"partition": ending.partition, "offset": ending.offset, "appended_at": ending.appended_at}
    return ending.ended.model_dump(mode="json") | where


def _line(ending: Ending) -> str:
    ended = ending.ended
    who = ended.subject if ended.tenant is None else f"{ended.tenant}/{ended.subject}"
    held = "  held" if ended.held else ""
    return (
        f"{clock(ending.appended_at)}  {ended.cause:<9} {printable(ended.session):<22}  {printable(who)}  "
        f"{printable(ended.policy)}  {ending.late_ms:+d} ms{held}"
    )
