"""What does a person see, while the demo runs and when it is over?"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Final

from rich.box import ROUNDED
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lapse.pipeline.cli.output import clock, printable
from lapse.pipeline.demo.measure import AFTER_END_MS, Percentiles
from lapse.pipeline.demo.observing import EVENTS_SHOWN, Observer
from lapse.pipeline.demo.people import Crowd
from lapse.pipeline.demo.services import SERVICES, ServiceName
from lapse.pipeline.demo.summary import Result
from lapse.pipeline.demo.timeouts import ABSOLUTE_MS, IDLE_MS
from lapse.schemas import Cause

__all__ = ["FINDINGS_SHOWN", "progress", "summary", "view"]

FINDINGS_SHOWN: Final = 10

_WIDTH: Final = 80  # a terminal's since ever
_BAR: Final = 20
_COLOURS: Final[dict[str, str]] = {
    Cause.IDLE: "yellow",
    Cause.ABSOLUTE: "magenta",
    Cause.REVOKED: "red",
    Cause.CLOSED: "green",
    "order": "bold red",
}
_MEANINGS: Final[dict[Cause, str]] = {
    Cause.IDLE: f"nothing done for {IDLE_MS // 1000} s",
    Cause.ABSOLUTE: f"logged in {ABSOLUTE_MS // 1000} s ago",
    Cause.REVOKED: "ordered by an operator",
    Cause.CLOSED: "logged out",
}


def view(observer: Observer, crowd: Crowd, began_at: float, seconds: float | None) -> RenderableType:
    """Return the whole view; `began_at`: monotonic s."""
    ran = time.monotonic() - began_at
    left = "Ctrl-C ends it" if seconds is None else f"{max(0.0, seconds - ran):.0f} s to go"
    gap = Text()
    tables = [_endings(observer), gap, _services(observer, crowd), gap, _speed(observer), gap, _events(observer)]
    return Panel(
        Group(*tables),
        title=f"[bold]Lapse[/]  {len(observer.live)} sessions live  [dim]{ran:.0f} s, {left}[/]",
        title_align="left",
        box=ROUNDED,
        width=_WIDTH,
    )


def progress(observer: Observer, crowd: Crowd, began_at: float) -> str:
    """Return one line, for where there is no terminal to draw on."""
    causes = ", ".join(f"{cause} {observer.causes[cause]}" for cause in _MEANINGS)
    ran = time.monotonic() - began_at
    refused = sum(crowd.counts.refused.values())
    return f"{ran:3.0f} s: {len(observer.live)} sessions live; ended: {causes}; refused: {refused}"


def summary(result: Result) -> RenderableType:
    """Return the result, for people."""
    verdict = result.verdict
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_row("sessions", str(verdict.sessions), "")
    for cause, meaning in _MEANINGS.items():
        table.add_row(f"  ended, {cause}", str(verdict.endings.get(cause, 0)), f"[dim]{meaning}[/]")
    crowd = result.crowd
    table.add_row("requests", str(crowd.requests), "[dim]answered, and logins[/]")
    table.add_row("requests refused", str(sum(crowd.refused.values())), _per_service(crowd.refused))
    table.add_row("WebSockets closed", str(crowd.websockets_closed), "[dim]by the services, at the session's end[/]")
    if crowd.failures:
        table.add_row("requests failed", f"[bold red]{crowd.failures}[/]", "")
    table.add_row("ended early", _zero(len(verdict.early)), "[dim]by a recomputation over the raw topics[/]")
    table.add_row("not ended, though over", _zero(len(verdict.missed)), "[dim]likewise[/]")
    table.add_row(
        "let pass after the end", _zero(result.accepted_after_end), f"[dim]more than {AFTER_END_MS / 1000:g} s[/]"
    )
    table.add_row("lateness", _ms(result.lateness), "[dim]from due to in the log, p50 / p99[/]")
    table.add_row("propagation", _ms(result.propagation), "[dim]from the log to refused, p50 / p99[/]")
    findings = [Text(f"{kind}: {what.session} {what.what}") for kind, what in result.findings]
    shown = findings[:FINDINGS_SHOWN]
    if len(findings) > len(shown):
        shown.append(Text(f"... and {len(findings) - len(shown)} more"))
    return Group(table, *shown)


def _table() -> Table:
    return Table(box=None, expand=True, pad_edge=False, header_style="bold")


def _endings(observer: Observer) -> RenderableType:
    table = _table()
    table.add_column("endings", ratio=2)
    table.add_column("", justify="right", width=6)
    table.add_column("", ratio=3)
    table.add_column("", ratio=3, style="dim")
    most = max(observer.causes.values(), default=0) or 1
    for cause, meaning in _MEANINGS.items():
        count = observer.causes[cause]
        bar = "█" * round(_BAR * count / most)
        table.add_row(Text(cause, style=_COLOURS[cause]), str(count), Text(bar, style=_COLOURS[cause]), meaning)
    return table


def _services(observer: Observer, crowd: Crowd) -> RenderableType:
    table = _table()
    for name in ("service", "checked", "refused", "denials kept", "knowledge"):
        table.add_column(name, justify="left" if name == "service" else "right")
    for service in SERVICES:
        status = observer.guards.get(service)
        if status is None:
            table.add_row(service, "-", "-", "-", "[dim]starting[/]")
            continue
        age = f"{status.stale_ms / 1000:.1f} s old"
        refused = str(crowd.counts.refused[service])
        table.add_row(service, str(status.checks), refused, str(status.entries), age)
    return table


def _speed(observer: Observer) -> RenderableType:
    table = _table()
    table.add_column("ms")
    table.add_column("p50", justify="right", width=8)
    table.add_column("p99", justify="right", width=8)
    table.add_column("", ratio=1, style="dim")
    now_ms = time.time_ns() / 1_000_000
    table.add_row("lateness", *_cells(observer.measures.lateness()), "from due to the ending in the log")
    table.add_row("propagation", *_cells(observer.measures.propagation(now_ms)), "from the log to refused in a service")
    return table


def _events(observer: Observer) -> RenderableType:
    table = _table()
    table.add_column("last events", width=12, style="dim")
    table.add_column("", width=9)
    table.add_column("", width=12)
    table.add_column("", ratio=1)
    # They come from several topics and partitions, each in its own order only.
    events = sorted(observer.events)
    for event in events:
        style = _COLOURS.get(event.what, "")
        table.add_row(clock(event.at), Text(event.what, style=style), Text(printable(event.who)), Text(event.detail))
    for _ in range(EVENTS_SHOWN - len(events)):
        table.add_row("", "", "", "")  # the view keeps its height
    return table


def _cells(found: Percentiles) -> Iterable[str]:
    return ("-" if value is None else f"{value:.1f}" for value in found)


def _ms(found: Percentiles) -> str:
    return " / ".join(_cells(found)) + " ms"


def _per_service(refused: Mapping[ServiceName, int]) -> str:
    return "[dim]" + ", ".join(f"{service} {refused.get(service, 0)}" for service in SERVICES) + "[/]"


def _zero(count: int) -> str:
    return f"[green]{count}[/]" if count == 0 else f"[bold red]{count}[/]"
