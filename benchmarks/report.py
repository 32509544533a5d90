"""What does a benchmark say?"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["percentile", "report", "say"]


def report(benchmark: str, value: float, unit: str, baseline: float, **more: Any) -> None:
    """Print one result. `ratio` is value over baseline."""
    line = {
        "benchmark": benchmark,
        "value": _short(value),
        "unit": unit,
        "baseline": _short(baseline),
        "ratio": round(value / baseline, 3),
        **{name: _short(figure) if isinstance(figure, float) else figure for name, figure in more.items()},
    }
    print(json.dumps(line), flush=True)


def say(sentence: str) -> None:
    """Tell a person what is going on."""
    print(sentence, file=sys.stderr, flush=True)


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile, 1 to 99, of at least two values."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _short(value: float) -> float:
    return round(value) if abs(value) >= 1000 else round(value, 3)
