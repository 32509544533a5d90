"""How does a command get its settings, and what becomes of its errors?

A command is a function of `settings` and its own parameters. It returns its exit code (None: 0):

| code | when |
| --- | --- |
| 0 | done |
| 1 | failed, or found something that is not as it must be |
| 2 | usage: a flag, an argument, a variable or `lapse.toml` is refused; nothing was done |

Data goes to standard output; everything else, errors and logs, to standard error. Every error is one line that says
what happened and what to do; a traceback is a fault of Lapse itself.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any, Final, NoReturn, TypeVar

import typer

from lapse.pipeline.cli import flags

__all__ = ["FAILED", "USAGE", "command", "fail", "run_async", "say", "usage"]

FAILED: Final = 1
USAGE: Final = 2

Result = TypeVar("Result")

# A command's own function: `settings` first, the exit code out.
Body = Callable[..., int | None]


def say(text: str) -> None:
    """Tell a person something that is not the command's data."""
    typer.echo(text, err=True)


def fail(message: str) -> NoReturn:
    """End the command with code 1 and one line."""
    say(f"lapse: {message}")
    raise typer.Exit(FAILED)


def usage(message: str) -> NoReturn:
    """End the command with code 2 and one line: what was asked for is refused, nothing was done."""
    say(f"lapse: {message}")
    raise typer.Exit(USAGE)


def run_async(work: Coroutine[Any, Any, Result]) -> Result:
    """Return what the work comes to, in an event loop of its own."""
    import asyncio

    return asyncio.run(work)


def command(
    app: typer.Typer,
    name: str,
    settings: tuple[str, ...] = flags.LOG,
    *,
    own: Mapping[str, tuple[type, str]] = MappingProxyType({}),
    dashed: bool = False,
) -> Callable[[Body], Body]:
    """Register a function as a command that takes these settings as flags beside its own parameters.

    Args:
        settings: the names of the settings.
        own: further settings, of this command alone: they reach the function as keywords, None where not given.
        dashed: whether an argument may begin with a dash, as one in 64 session references does. Short options are then
            none, not even -h, since such an argument is read as a row of them.
    """
    context = {"ignore_unknown_options": True, "help_option_names": ["--help"]} if dashed else None

    def register(body: Body) -> Body:
        app.command(name, context_settings=context)(_told_by_flags(body, settings, own))
        return body

    return register


def _told_by_flags(
    body: Body, names: tuple[str, ...], own_settings: Mapping[str, tuple[type, str]]
) -> Callable[..., None]:
    """Return the function that typer calls: it makes the settings from the flags and turns errors into exit codes."""

    @functools.wraps(body)
    def run(**given: Any) -> None:
        from lapse.pipeline.cli import logs
        from lapse.schemas.errors import LapseError

        logs.quieten_clients()
        told = {name: given.pop(name) for name in names}
        settings = _settings(told)
        try:
            code = body(settings, **given)
        except LapseError as error:
            fail(str(error))
        if code:
            raise typer.Exit(code)

    # typer reads a function's signature: the body's without `settings`, and the flags.
    hints = typing.get_type_hints(body, localns={"Settings": Any}, include_extras=True)
    own = [
        parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in list(inspect.signature(body).parameters.values())[1:]
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    shown = [*own, *flags.parameters(own_settings, own_settings), *flags.parameters(names)]
    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]  # functions have it; typeshed does not say so
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    del run.__wrapped__
    return run


def _settings(told: dict[str, Any]) -> Any:
    from lapse.pipeline.settings import Settings
    from lapse.schemas.errors import LapseError

    try:
        return Settings(**told)
    except LapseError as refused:
        usage(str(refused))
