"""The demo: a real broker, a worker, two services, and simulated people who use them."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Final

from lapse.schemas import ConfigError

if TYPE_CHECKING:
    from lapse.pipeline.settings import Settings

__all__ = ["run_demo"]

_NEEDED: Final = ("fastapi", "uvicorn", "websockets", "httpx2")


def run_demo(settings: Settings, seconds: float | None, as_json: bool) -> int:
    """Run the demo and print what came of it.

    Args:
        settings: `kafka` counts only if it was named; the prefix, group, worker and key are the demo's own.
        seconds: how long people use the services; None: until Ctrl-C.
        as_json: print the result as one object, the last line of standard output.

    Returns:
        0 if nothing ended early, was missed, or was let pass after its end; else 1.

    Raises:
        ConfigError: a package is missing that only the demo needs.
        RuntimeFault: there is no broker to use, or a process failed.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"the demo needs {', '.join(missing)}: pip install {' '.join(missing)}")
    from lapse.pipeline.demo.run import run

    return run(settings, seconds, as_json)
