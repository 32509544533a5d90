"""Where are `pom.xml`, `log4j2.xml` and `compose.yaml`, and where may the broker's jars be kept?"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_directory", "infra"]

_HERE = Path(__file__).resolve().parent


def infra(name: str) -> Path:
    """Return a file of `infra/kafka`: beside this module where Lapse comes from a wheel, else in the source tree."""
    installed = _HERE / "kafka" / name
    return installed if installed.exists() else _HERE.parents[3] / "infra" / "kafka" / name


def cache_directory() -> Path:
    """Return the user's cache of Lapse (XDG base directory specification): fetched once, used by every checkout."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lapse"
