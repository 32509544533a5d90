"""Run the benchmarks: all, or `--only NAME`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine

from benchmarks import (
    appliers,
    bootstrap,
    burst,
    check,
    checkpointing,
    denials,
    lateness,
    memory,
    processor,
    propagation,
    publisher,
    recovery,
    scale,
)

BENCHMARKS: dict[str, Callable[[], Coroutine[None, None, None]]] = {
    "processor": processor.run,
    "processor_packed": processor.run_packed,
    "lateness": lateness.run,
    "propagation": propagation.run,
    "burst": burst.run,
    "memory": memory.run,
    "recovery": recovery.run,
    "scale": scale.run,
    "checkpoints": checkpointing.run,
    "check": check.run,
    "bootstrap": bootstrap.run,
    "denial_memory": denials.run,
    "publisher": publisher.run,
    "appliers": appliers.run,
}


def main() -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=sorted(BENCHMARKS), help="one benchmark; without it all")
    only = parser.parse_args().only
    try:
        for name, benchmark in BENCHMARKS.items():
            if only in (None, name):
                asyncio.run(benchmark())
    except KeyboardInterrupt:
        return 130  # as a shell says of what Ctrl-C ended; brokers and workers have been put away
    return 0


if __name__ == "__main__":
    sys.exit(main())
