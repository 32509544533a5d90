"""How does a command print its data?

As a table or lines for people, or with `--json` one object a line for programs. Names come from services and their
users: whatever would steer a terminal is shown as an escape, and nothing in them is taken for markup.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer

__all__ = ["clock", "print_json", "print_table", "printable"]


def print_json(row: Mapping[str, Any]) -> None:
    """Print one object on one line, at once (a reader may be waiting for it)."""
    import orjson

    # Through the binary buffer: whatever the terminal's encoding, JSON is UTF-8.
    stream = typer.get_binary_stream("stdout")
    stream.write(orjson.dumps(row) + b"\n")
    stream.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: as wide as the terminal, unwrapped where there is none (for `grep` and `awk`)."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_UNWRAPPED)
    table = Table(*columns, box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


# Wider than any row that the limits on names allow in practice; rich pads nothing to it.
_UNWRAPPED = 4096


def printable(text: str) -> str:
    """Return the text with everything that is not printable escaped: control characters, and what turns text around."""
    return (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    )


def clock(at_ms: int) -> str:
    """Return an instant (epoch ms) as a time of day here."""
    at = datetime.datetime.fromtimestamp(at_ms / 1000).astimezone()
    return f"{at:%H:%M:%S}.{at_ms % 1000:03d}"
