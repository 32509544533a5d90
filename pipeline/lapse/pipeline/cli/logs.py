"""Where do a command's logs go?

To standard error, so that standard output stays data: Python's own handler of last resort writes warnings there, as
they are, and a worker sets up its own logs.
"""

from __future__ import annotations

import logging

__all__ = ["quieten_clients"]


def quieten_clients() -> None:
    """Show of the Kafka client only what is worse than an error.

    While a broker is down it tells of each of its attempts, about fifteen times a second; what a command could not do,
    it says itself, in one line.
    """
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
