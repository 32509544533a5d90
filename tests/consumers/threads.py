"""What tests with threads do again and again."""

import threading
import time
from collections.abc import Callable

__all__ = ["together", "until"]


def together(work: "list[threading.Thread]") -> None:
    """Start all of these and wait until each has ended."""
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait until the condition holds, looking often; it is asked from this thread."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.002)
