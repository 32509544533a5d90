"""The program as its users run it: arguments in, exit code and the two outputs out."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from typer.testing import CliRunner

from lapse.pipeline.cli.program import app
from lapse.pipeline.settings import Settings

__all__ = ["Outcome", "at_a_terminal", "flags_of", "lapse", "program", "program_environment", "run_program"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command left: `out` is data, `err` everything else."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The objects of a `--json` output: one a line, and nothing else."""
        return [json.loads(line) for line in self.out.splitlines()]


def flags_of(settings: Settings) -> list[str]:
    """Return the flags that name these settings' broker and topics."""
    return ["--kafka", settings.kafka, "--prefix", settings.prefix]


def lapse(*arguments: str, settings: Settings | None = None, given: str | None = None) -> Outcome:
    """Run a command in this process; `given` is its standard input, which is never a terminal."""
    flags = flags_of(settings) if settings is not None else []
    result = CliRunner().invoke(app, [*arguments, *flags], input=given or "", prog_name="lapse")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def program(*arguments: str) -> list[str]:
    """Return the command line that runs the program in a process of its own."""
    return [sys.executable, "-m", "lapse.pipeline.cli", *arguments]


def program_environment(**settings: str) -> dict[str, str]:
    """Return an environment for it with these `LAPSE_` variables."""
    return {**os.environ, **settings, "PYTHONUNBUFFERED": "1"}


def run_program(*arguments: str, given: str = "") -> Outcome:
    """Run a command in a process of its own."""
    done = subprocess.run(program(*arguments), input=given, capture_output=True, text=True, timeout=60, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


def at_a_terminal(*arguments: str, typed: str) -> tuple[Outcome, str]:
    """Run a command in a process whose standard input is a terminal; type once it asks. Returns the screen too."""
    screen, keyboard = pty.openpty()
    # A session of its own has no other terminal that a question could go to.
    process = subprocess.Popen(
        program(*arguments),
        stdin=keyboard,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("LAPSE_")},
    )
    os.close(keyboard)
    assert process.stderr is not None
    try:
        asked = b""
        while not asked.rstrip().endswith((b":", b"]")):
            ready, _, _ = select.select([process.stderr], [], [], 30)
            chunk = os.read(process.stderr.fileno(), 4096) if ready else b""
            assert chunk, f"it never asked: {asked!r}"
            asked += chunk
        os.write(screen, typed.encode())
        out, err = process.communicate(timeout=60)
        try:
            shown = os.read(screen, 4096)
        except OSError:  # nothing was shown, and nobody is at the other end any more
            shown = b""
    finally:
        process.kill()
        process.wait()
        os.close(screen)
    return Outcome(process.returncode, out.decode(), (asked + err).decode()), shown.decode()
