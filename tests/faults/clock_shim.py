"""How is one broker's wall clock set while it runs? By a library of 40 lines, built here and preloaded into it."""

from __future__ import annotations

import contextlib
import mmap
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lapse.pipeline.broker import local, maven, record

__all__ = ["ShimmedBroker", "shimmed_broker"]


@dataclass(frozen=True, slots=True)
class ShimmedBroker:
    """A broker of its own whose wall clock can be set."""

    bootstrap: str
    pid: int
    _offset: mmap.mmap

    def set_clock(self, offset_ms: int) -> None:
        """Let its wall clock be so far from this machine's, at once."""
        self._offset[:8] = struct.pack("=q", offset_ms)


@contextlib.contextmanager
def shimmed_broker(directory: Path, **overrides: str) -> Iterator[ShimmedBroker]:
    """Give a broker with the shim; overrides: of its properties, with _ for the dots."""
    directory.mkdir(parents=True, exist_ok=True)
    library, clock = directory / "clock_shim.so", directory / "clock"
    source = Path(__file__).with_name("clock_shim.c")
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-Wall", "-o", library, source], check=True)
    clock.write_bytes(bytes(8))
    java = maven.find_java()
    assert java is not None, "a JDK of version 17 or newer is needed"
    started = maven.start(
        directory,
        java,
        lambda _: None,
        environment={"LD_PRELOAD": str(library), "LAPSE_CLOCK": str(clock)},
        overrides={name.replace("_", "."): value for name, value in overrides.items()},
    )
    record.write(directory, started)
    assert started.pid is not None
    try:
        with clock.open("r+b") as file, mmap.mmap(file.fileno(), 8) as offset:
            yield ShimmedBroker(started.bootstrap, started.pid, offset)
    finally:
        local.stop_broker(directory, erase=True)
