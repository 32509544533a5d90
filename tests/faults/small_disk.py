"""A disk that a broker can fill: a tmpfs over its log directory, in a mount namespace of its own; no rights needed.

A process holds the namespace (`unshare`) and copies the directory onto the small disk and back; the broker is started
within it (`nsenter`). Whoever looks from outside sees the directory as it was before, until the disk is taken away.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

__all__ = ["SmallDisk"]

# $1 is the directory, $2 what is to be free, in MiB. It serves until its standard input ends.
_HOLDER: Final = """
set -e
size=$(( $(du -sm "$1" | cut -f1) + $2 ))
cp -a "$1" "$1.aside"
mount -t tmpfs -o "size=${size}m" tmpfs "$1"
cp -a "$1.aside/." "$1"
rm -rf "$1.aside"
echo ready
cat > /dev/null
cp -a "$1" "$1.aside"
umount "$1"
rm -rf "$1"
mv "$1.aside" "$1"
"""
_FILLER: Final = "filler"
_PATIENCE_S: Final = 60.0


class SmallDisk:
    """The small disk under one directory that nobody uses at the moment."""

    def __init__(self, directory: Path, free_mib: int) -> None:
        self._directory = directory
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _HOLDER, "sh", str(directory)]
        self._holder = subprocess.Popen(
            [*command, str(free_mib)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n", "no small disk: are user namespaces allowed here?"

    @property
    def within(self) -> list[str]:
        """The words before a command that is to see the small disk."""
        return ["nsenter", "--target", str(self._holder.pid), "--user", "--mount", "--preserve-credentials"]

    def fill(self) -> None:
        """Leave not a byte."""
        filling = ["dd", "if=/dev/zero", f"of={self._directory / _FILLER}", "bs=4096"]
        done = subprocess.run([*self.within, *filling], stderr=subprocess.PIPE, text=True, timeout=60, check=False)
        assert "No space left" in done.stderr, done.stderr

    def free(self) -> None:
        """Give back what was filled."""
        removing = ["rm", "-f", str(self._directory / _FILLER)]
        subprocess.run([*self.within, *removing], timeout=60, check=True)

    def take_away(self) -> None:
        """Copy all of it back. Nobody may use it any more."""
        self.free()
        self._holder.communicate(timeout=_PATIENCE_S)
        assert self._holder.returncode == 0
