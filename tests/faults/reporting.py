"""Where do the figures of a run go? To the file that FAULTS_REPORT names, one JSON object a line, if it is set."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["REPORT", "note"]

# Without the prefix LAPSE_: the tests clear their environment of those, for a user may have some of their own.
REPORT = os.environ.get("FAULTS_REPORT")


def note(what: str, report: dict[str, Any]) -> None:
    """Write one scenario's figures."""
    line = json.dumps({"scenario": what, **report})
    print(line)
    if REPORT is not None:
        with Path(REPORT).open("a") as file:
            file.write(line + "\n")
