"""How does a command that ends or deletes much make sure that it is meant, and by whom?

It says what it would do and asks. Where nobody can answer (no terminal) it does nothing and says how to mean it.
"""

from __future__ import annotations

import getpass
import socket
import sys

import typer

from lapse.pipeline.cli.command import FAILED, say, usage

__all__ = ["by_whom", "confirm"]


def confirm(question: str, *, yes: bool) -> None:
    """Go on if the person says yes, or said so beforehand; else end the command.

    Raises:
        typer.Exit: 1 if the answer is no; 2 if nobody can be asked.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        usage(f"{question} Nobody can be asked here: give --yes to mean it.")
    if not typer.confirm(question, err=True):
        say("nothing was done")
        raise typer.Exit(FAILED)


def by_whom(by: str | None) -> str:
    """Return who gives the command, for the record's `by`: who is named, else this user at this machine."""
    if by is not None:
        return by
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # no such user in the password file, as in some containers
        return f"unknown@{socket.gethostname()}"
