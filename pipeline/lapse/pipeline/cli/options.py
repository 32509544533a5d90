"""Which options do several commands share, and how are options written?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

__all__ = ["Json", "text_option"]

Json = Annotated[bool, typer.Option("--json", help="Print one object a line.")]


def text_option(flag: str, about: str) -> Any:
    """Return an option that takes text."""
    return typer.Option(flag, metavar="TEXT", help=about)
