"""Which broker did Lapse start here, and is it still running?

One small file, `broker.json` in Lapse's directory (`.lapse/`), is the whole memory between `lapse broker up` and
`lapse broker down`:

    {"kind": "maven", "bootstrap": "127.0.0.1:41234", "pid": 4242, "started": 8123456, "container": null}

`started` is the process's start time as the kernel tells it, so that a pid that was given to somebody else since is
never taken for the broker, and never signalled. It is null where the kernel does not tell (no /proc).
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Literal

__all__ = ["BrokerKind", "BrokerRecord", "forget", "process_is_alive", "process_start", "read", "running", "write"]

BrokerKind = Literal["maven", "docker", "given"]

_FILE = "broker.json"


@dataclasses.dataclass(frozen=True, slots=True)
class BrokerRecord:
    """A broker that was started here.

    Attributes:
        kind: `maven` (a process of ours), `docker` (a container of ours) or `given` (`LAPSE_KAFKA`; never written).
        bootstrap: `host:port`, comma separated where there are several.
        pid: the process, of kind `maven`.
        started: that process's start time, in the kernel's own unit.
        container: the container's name, of kind `docker`.
    """

    kind: BrokerKind
    bootstrap: str
    pid: int | None = None
    started: int | None = None
    container: str | None = None


def process_start(pid: int) -> int | None:
    """Return the kernel's start time of a process, in clock ticks since boot; None without /proc or the process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field is the command in parentheses and may hold anything, spaces and parentheses included: what
    # follows its last ")" is fields 3 and on; the start time is field 22 (proc(5)).
    fields = stat[stat.rindex(")") + 2 :].split()
    # A zombie has ended; it only waits for its parent to ask how.
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def process_is_alive(pid: int, started: int | None) -> bool:
    """Return whether the process of that pid still runs and is the one that started at `started`."""
    if Path("/proc/self/stat").exists():
        now = process_start(pid)
        return now is not None and (started is None or now == started)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read(directory: Path) -> BrokerRecord | None:
    """Return what `broker.json` says, whether or not that broker still runs; None without a readable file."""
    try:
        data = json.loads((directory / _FILE).read_text(encoding="utf-8"))
        return BrokerRecord(**data)
    except (OSError, ValueError, TypeError):
        # A torn or foreign file says nothing about a broker; starting one overwrites it.
        return None


def running(directory: Path) -> BrokerRecord | None:
    """Return the broker of `broker.json` if it still runs.

    Of a container only the record is known here: asking the engine costs a second, and whoever connects finds out.
    """
    found = read(directory)
    if found is None or (found.pid is not None and not process_is_alive(found.pid, found.started)):
        return None
    return found


def write(directory: Path, record: BrokerRecord) -> None:
    """Write `broker.json`, whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    draft = directory / f"{_FILE}.{os.getpid()}"
    draft.write_text(json.dumps(dataclasses.asdict(record)) + "\n", encoding="utf-8")
    draft.replace(directory / _FILE)


def forget(directory: Path) -> None:
    """Remove `broker.json`."""
    (directory / _FILE).unlink(missing_ok=True)
