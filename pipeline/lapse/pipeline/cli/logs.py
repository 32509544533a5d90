"""Where do a command's logs go?

To standard error, so that standard output stays data. The Kafka client retries by itself and says so about fifteen
times a second while a broker is down; what a command cannot do it says itself, in one line, so of the client only what
is worse than an error is shown. A worker, which lives on through outages, sets up its own logs.
"""

from __future__ import annotations

import logging

__all__ = ["to_stderr"]


def to_stderr() -> None:
    """Send warnings and worse to standard error, one line each."""
    logging.basicConfig(level=logging.WARNING, format="lapse: %(message)s", force=True)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
