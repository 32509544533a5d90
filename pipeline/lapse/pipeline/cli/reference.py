"""Does docs/cli.md show the help that the program gives?

The page is written by hand but for blocks that begin with a comment line naming a command:

    <!-- help: lapse topics apply -->
    ```text
    Usage: lapse topics apply [OPTIONS]
    ```

`python -m lapse.pipeline.cli.reference docs/cli.md` writes the present help into them; a test holds the page to it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import typer.main

from lapse.pipeline.cli.program import app

__all__ = ["commands", "documented", "help_of", "refresh"]

_WIDTH: Final = 100
_BLOCK: Final = re.compile(r"<!-- help: (?P<command>[a-z ]+) -->\n```text\n(?P<help>.*?)```\n", re.DOTALL)


def commands() -> list[str]:
    """Return every command and group of commands, as it is typed, in the order of the help."""
    return [name for name, _ in _walk()]


def help_of(command: str) -> str:
    """Return the help of a command, as it is typed, at a fixed width.

    Raises:
        KeyError: there is no such command.
    """
    context = dict(_walk())[command]
    text: str = context.command.get_help(context)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def documented(page: str) -> list[str]:
    """Return the commands whose help the page shows, in its order."""
    return [block["command"] for block in _BLOCK.finditer(page)]


def refresh(page: str) -> str:
    """Return the page with the present help in its blocks.

    Raises:
        KeyError: a block names a command that there is not.
    """
    return _BLOCK.sub(
        lambda block: f"<!-- help: {block['command']} -->\n```text\n{help_of(block['command'])}```\n", page
    )


def _walk() -> Iterator[tuple[str, Any]]:
    """Yield each command's name and context, a group before its commands."""
    # typer carries its own copy of click, whose classes are not public: hence Any.
    root: Any = typer.main.get_command(app)
    waiting: list[tuple[Any, str, Any]] = [(root, "lapse", None)]
    while waiting:
        command, name, parent = waiting.pop(0)
        context = command.context_class(
            command, info_name=name, parent=parent, terminal_width=_WIDTH, **command.context_settings
        )
        yield context.command_path, context
        names = command.list_commands(context) if hasattr(command, "list_commands") else ()
        waiting[:0] = [(command.get_command(context, each), each, context) for each in names]


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(refresh(path.read_text(encoding="utf-8")), encoding="utf-8")
