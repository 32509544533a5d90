"""`lapse fleet`: which services enforce endings, and which do not."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lapse.pipeline.cli.command import FAILED, command, run_async, say, usage
from lapse.pipeline.cli.durations import BadDuration, format_duration, parse_duration
from lapse.pipeline.cli.options import Json, text_option
from lapse.pipeline.cli.output import clock, print_json, print_table, printable

if TYPE_CHECKING:
    from lapse.pipeline.operations.fleet import Enforcement, Row
    from lapse.pipeline.operations.fleet_reading import View
    from lapse.pipeline.settings import Settings

__all__ = ["register"]

_COLUMNS = ("service", "instance", "version", "report", "stale", "p50 / p99", "checks", "refused", "stands out")
_COLUMNS_OF_ONE = ("service", "instance", "state", "after", "closed", "report")
_STATES = {
    "known": "known from before its report",
    "stopped": "stopped without it",
    "missing": "NOT APPLIED",
    "unguarded": "NO GUARD",
}
_LACKING = frozenset({"missing", "unguarded"})


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "fleet")(fleet)


def fleet(
    settings: Settings,
    revocation: Annotated[
        str | None, text_option("--revocation", "Who has applied this revocation, after how long, and who has not.")
    ] = None,
    within: Annotated[
        str,
        typer.Option("--within", metavar="DURATION", help="How far back reports, revocations and activity are read."),
    ] = "5m",
    live: Annotated[bool, typer.Option("--live", help="Show it anew every second, until Ctrl-C.")] = False,
    json: Json = False,
) -> int:
    """Show every service's guards, and what stands out: exit code 1 where something does.

    Stands out: a service that publishes activity without a guard; a guard that is silent, stale, behind in the topics,
    lets sessions pass while stale, or has not applied a revocation. A guard that was told to stop does not: it is shown
    as stopped for 15 seconds. It takes two to three seconds, since guards report once a second.
    """
    if live and json:
        usage("--live draws for people: leave it out, or leave out --json")
    try:
        within_ms = parse_duration(within)
    except BadDuration as bad:
        usage(f"--within: {bad}")
    if live:
        with contextlib.suppress(KeyboardInterrupt):
            run_async(_live(settings, within_ms, revocation))
        return 0
    return run_async(_once(settings, within_ms, revocation, as_json=json))


async def _once(settings: Settings, within_ms: int, revocation: str | None, *, as_json: bool) -> int:
    from lapse.pipeline.operations.fleet_reading import watch_fleet

    async with contextlib.aclosing(watch_fleet(settings, within_ms=within_ms, revocation=revocation)) as views:
        view = await anext(views)
    say(_sampled(view))
    if revocation is not None:
        return _tell_one(view, as_json=as_json)
    rows = view.fleet.rows(view.now, within_ms)
    if as_json:
        for row in rows:
            print_json(_object(row))
    elif rows:
        print_table(_COLUMNS, [_cells(row) for row in rows])
    else:
        say(f"nobody has reported, and no service has published activity, within {format_duration(within_ms)}")
    return FAILED if any(row.findings for row in rows) else 0


def _tell_one(view: View, *, as_json: bool) -> int:
    found = view.fleet.enforcement(view.now)
    if as_json:
        for one in found:
            print_json({name: getattr(one, name) for name in one.__slots__})
    elif found:
        print_table(_COLUMNS_OF_ONE, [_cells_of_one(one) for one in found])
    else:
        say("no guard has reported")
    return FAILED if any(one.state in _LACKING for one in found) else 0


async def _live(settings: Settings, within_ms: int, revocation: str | None) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    from lapse.pipeline.operations.fleet_reading import watch_fleet

    views = watch_fleet(settings, within_ms=within_ms, revocation=revocation)
    with Live(console=Console(highlight=False), auto_refresh=False, vertical_overflow="visible") as screen:
        async with contextlib.aclosing(views):
            async for view in views:
                if revocation is None:
                    rows = view.fleet.rows(view.now, within_ms)
                    table = _table(_COLUMNS, [(_cells(row), bool(row.findings)) for row in rows])
                else:
                    ones = view.fleet.enforcement(view.now)
                    table = _table(_COLUMNS_OF_ONE, [(_cells_of_one(one), one.state in _LACKING) for one in ones])
                told = f"{clock(view.now)}  {_sampled(view)}; Ctrl-C ends"
                screen.update(Group(table, Text(told, style="dim")), refresh=True)


def _table(columns: Sequence[str], rows: Sequence[tuple[Sequence[str], bool]]) -> Any:
    """Return a table for the screen; the rows that stand out are red."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for cells, stands_out in rows:
        table.add_row(*(Text(printable(cell)) for cell in cells), style="red" if stands_out else "")
    return table


def _sampled(view: View) -> str:
    sample = view.sample
    since = "" if sample.since is None else f", since {clock(sample.since)}"
    return f"services that publish are those in the last {sample.records} records of activity{since}"


def _object(row: Row) -> dict[str, object]:
    status = {} if row.status is None else row.status.model_dump(mode="json", exclude={"type", "v", "stopping"})
    return {
        **status,
        "service": row.service,
        "instance": row.instance,
        "silent_ms": row.silent_ms,
        "stopped": row.stopped,
        "behind": row.behind,
        "allowed_while_stale_within": row.allowed_while_stale,
        "findings": [{"kind": one.kind, "amount": one.amount, "about": one.about} for one in row.findings],
    }


def _cells(row: Row) -> tuple[str, ...]:
    findings = "; ".join(finding.about for finding in row.findings)
    status = row.status
    if status is None:
        return (row.service, row.instance or "-", "-", _ago(row.silent_ms), "-", "-", "-", "-", findings)
    propagation = status.propagation_ms
    return (
        row.service,
        row.instance or "-",
        status.version,
        f"stopped {_ago(row.silent_ms)}" if row.stopped else _ago(row.silent_ms),
        f"{status.stale_ms} ms",
        "-" if propagation is None else f"{propagation.p50:.1f} / {propagation.p99:.1f} ms",
        str(status.checks),
        str(status.refused),
        findings,
    )


def _cells_of_one(one: Enforcement) -> tuple[str, ...]:
    return (
        one.service,
        one.instance or "-",
        _STATES.get(one.state, one.state),
        "-" if one.after_ms is None else f"{one.after_ms:.1f} ms",
        "-" if one.closed is None else str(one.closed),
        _ago(one.silent_ms),
    )


def _ago(ms: int | None) -> str:
    return "-" if ms is None else f"{ms / 1000:.1f} s ago"
