"""How do people write durations?

A number and a unit, several in a row where one is not enough: `15m`, `8h`, `1h30m`, `500ms`, `2d`. A number without a
unit is refused, since it is milliseconds to some and seconds to others; `none` is no limit where a limit is meant.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

__all__ = ["NONE", "BadDuration", "format_duration", "parse_duration"]

NONE: Final = "none"

_UNITS_MS: Final = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[dhms])")
_WHOLE: Final = re.compile(rf"(?:{_PART.pattern})+")


class BadDuration(ValueError):
    """The text is not a duration; the message says what one looks like."""


def parse_duration(text: str) -> int:
    """Return the milliseconds that a text names, 1 to DURATION_MAX_MS.

    Raises:
        BadDuration: it is not a duration, or none of whole milliseconds in that range.
    """
    from lapse.schemas import DURATION_MAX_MS

    compact = text.strip().lower().replace(" ", "")
    if _WHOLE.fullmatch(compact) is None:
        raise BadDuration(f"{text!r} is not a duration: write a number and a unit, as 500ms, 90s, 15m, 8h, 1h30m or 7d")
    # Decimal, for 1.001 times 1000 is not 1001 in binary fractions.
    total = sum((Decimal(number) * _UNITS_MS[unit] for number, unit in _PART.findall(compact)), Decimal(0))
    if total > DURATION_MAX_MS:
        raise BadDuration(f"{text[:40]!r} is longer than any duration: at most {format_duration(DURATION_MAX_MS)}")
    if total != int(total) or total < 1:
        raise BadDuration(f"{text!r} is not a duration above zero in whole milliseconds")
    return int(total)


def format_duration(ms: int | None) -> str:
    """Return a duration as `parse_duration` reads it, its largest units first; None is `none`."""
    if ms is None:
        return NONE
    parts = []
    for unit, size in _UNITS_MS.items():
        count, ms = divmod(ms, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0ms"
