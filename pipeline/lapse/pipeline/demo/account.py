"""What did a service let pass, and from when did it refuse?

Each service keeps an append-only account, one JSON line an entry, in the demo's own directory. Nothing in the path that
is measured reads it: the demo does, to hold what was let pass against the endings in the log.

    {"at": 1764000000123.4, "what": "passed", "session": "<reference>"}     a request, or a message on a WebSocket
    {"at": 1764000000456.7, "what": "refuses", "session": "<reference>"}    from now on the guard refuses the session

`at` is epoch ms of this machine's clock, which is also the clock of a broker that runs on this machine.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self

import orjson

__all__ = ["Account", "AccountReader", "Entry", "What"]

What = Literal["passed", "refuses"]


class Entry(NamedTuple):
    """One line of an account."""

    at: float
    what: What
    session: str


class Account:
    """Writes an account; one process, one file."""

    def __init__(self, path: Path) -> None:
        # Unbuffered: what a service has let pass stands in the file whatever becomes of the service.
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def passed(self, session: str) -> None:
        """Note that a request or message of the session is let pass now."""
        self._write("passed", session)

    def refuses(self, session: str) -> None:
        """Note that the session is refused from now on."""
        self._write("refuses", session)

    def _write(self, what: What, session: str) -> None:
        at = time.time_ns() / 1_000_000
        self._file.write(orjson.dumps({"at": at, "what": what, "session": session}) + b"\n")


class AccountReader:
    """Reads an account while it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[Entry]:
        """Return the entries since the last call; a line that is not whole yet waits for the next."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [Entry(**orjson.loads(line)) for line in whole.splitlines()]
