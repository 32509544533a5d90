"""What does a worker tell Prometheus?"""

from __future__ import annotations

import re
import socket
import urllib.request
from typing import Final

__all__ = ["Metrics"]

_SAMPLE: Final = re.compile(r"^(\w+)(?:\{(.*?)\})? (\S+)$", re.MULTILINE)


class Metrics:
    """One worker's, at a port of its own: `worker.start(**metrics.variables)`."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = int(free.getsockname()[1])

    @property
    def variables(self) -> dict[str, str]:
        """What makes the worker serve them here."""
        return {"LAPSE_METRICS_PORT": str(self._port)}

    def answers(self) -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", self._port)) == 0

    def sums(self) -> dict[str, int]:
        """Return, by name, the sum over all labels; of the engines' counters by what they count."""
        found: dict[str, int] = {}
        for name, labels, number in self._samples():
            what = re.search(r'what="(\w+)"', labels)
            key = what.group(1) if what else name
            found[key] = found.get(key, 0) + int(float(number))
        return found

    def checkpoints_beyond(self, seconds: float) -> int:
        """Return how many checkpoints took longer, from cut to committed; it must be a bound of the histogram."""
        samples = self._samples()
        (within,) = (
            float(number)
            for name, labels, number in samples
            if name == "lapse_checkpoint_seconds_bucket" and f'le="{seconds}"' in labels
        )
        (all_,) = (float(number) for name, _, number in samples if name == "lapse_checkpoint_seconds_count")
        return int(all_ - within)

    def _samples(self) -> list[tuple[str, str, str]]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=60) as answer:
            return _SAMPLE.findall(answer.read().decode())
