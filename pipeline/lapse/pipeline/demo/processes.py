"""How does the demo start a process, know that it is well, and end it?

Each child has a session of its own, so that Ctrl-C in the terminal reaches the demo alone, which then ends its children
in order. What a child says goes to a file in the demo's directory; of one that failed the last lines are shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import orjson

from lapse.schemas import RuntimeFault

__all__ = ["Child"]

READY_TIMEOUT_S: Final = 60.0
"""A service imports for a second and reads two empty topics; a busy machine may take many times as long."""
_STOP_TIMEOUT_S: Final = 15.0
_LINES_SHOWN: Final = 12


class Child:
    """A process of the demo; made by `start`.

    Attributes:
        name: for people.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log

    @classmethod
    async def start(
        cls,
        name: str,
        arguments: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        first_line: bytes | None = None,
    ) -> Child:
        """Start `python <arguments>` in the directory.

        Args:
            environment: what it gets besides this process's own, without the LAPSE_ variables of the latter.
            first_line: written to its standard input, which then stays open until the child is ended.
        """
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LAPSE_")}
        log = directory / f"{name}.log"
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                cwd=directory,
                env={**inherited, **environment},
                stdin=asyncio.subprocess.PIPE if first_line is not None else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if first_line is not None else file,
                stderr=file,
                start_new_session=True,
            )
        if first_line is not None and process.stdin is not None:
            process.stdin.write(first_line + b"\n")
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    async def told(self) -> dict[str, int]:
        """Return the line that it prints when it is ready, a JSON object.

        Raises:
            RuntimeFault: it ended, or says nothing in time.
        """
        assert self._process.stdout is not None  # noqa: S101  # asked only of children started with a first line
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise RuntimeFault(f"{self.name} is not ready after {READY_TIMEOUT_S:.0f} s\n{self.last_words()}") from None
        if not line:
            raise RuntimeFault(f"{self.name} did not start\n{self.last_words()}")
        answer: dict[str, int] = orjson.loads(line)
        return answer

    async def ended(self) -> RuntimeFault:
        """Return the fault that its end is, once it has ended by itself."""
        code = await self._process.wait()
        return RuntimeFault(f"{self.name} ended by itself (exit code {code})\n{self.last_words()}")

    async def stop(self) -> int:
        """End it, gently and then by force, and return its exit code."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(number)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_STOP_TIMEOUT_S):
                        await self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        return self._process.returncode or 0

    def last_words(self) -> str:
        """Return the last lines of what it said, indented."""
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(f"    {line}" for line in lines[-_LINES_SHOWN:])
