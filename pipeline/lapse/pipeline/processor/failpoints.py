"""Where may a worker be killed on purpose, so that a test can tell that nothing depends on where it dies?

`LAPSE_FAILPOINT=name:n` makes the process kill itself with SIGKILL at its n-th pass of that point: no handler runs, no
buffer is flushed, as with kill -9 from outside, but at one exact step. The numbers are those of core.py:

    before-publish                 after 1, before 2: sessions are ended in memory, and nobody has been told
    after-ack-before-commit        between 3 and 4: all effects stand in the log, the checkpoint of them does not
    mid-checkpoint                 within 4: the state is in the open transaction, neither positions nor commit are
    mid-restore                    fenced and read back, nothing of it in use yet

Without the variable every point is a call of an empty function, once a batch or checkpoint. A name that is unknown is
refused at the start: a test that kills nobody would prove nothing.
"""

import os
import signal
from collections.abc import Callable
from typing import Final

from lapse.schemas import ConfigError

__all__ = [
    "AFTER_ACK_BEFORE_COMMIT",
    "BEFORE_PUBLISH",
    "FAILPOINTS",
    "MID_CHECKPOINT",
    "MID_RESTORE",
    "VARIABLE",
    "arm",
]

VARIABLE: Final = "LAPSE_FAILPOINT"

BEFORE_PUBLISH: Final = "before-publish"
AFTER_ACK_BEFORE_COMMIT: Final = "after-ack-before-commit"
MID_CHECKPOINT: Final = "mid-checkpoint"
MID_RESTORE: Final = "mid-restore"
FAILPOINTS: Final = (BEFORE_PUBLISH, AFTER_ACK_BEFORE_COMMIT, MID_CHECKPOINT, MID_RESTORE)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(given: str | None, kill: Callable[[], None] = _kill) -> Callable[[str], None]:
    """Return what is to be called at each failpoint with its name.

    Args:
        given: `name:n`, n at least 1, or None.
        kill: ends the process.

    Raises:
        ConfigError: there is no such failpoint, or n is no count.
    """
    if not given:
        return _nothing
    name, _, count = given.partition(":")
    if name not in FAILPOINTS or not count.isdecimal() or int(count) < 1:
        raise ConfigError(
            f"{VARIABLE}={given!r} must be name:n, with n from 1 on and a name of {', '.join(FAILPOINTS)}"
        )
    left = int(count)

    def reach(reached: str) -> None:
        nonlocal left
        if reached == name:
            left -= 1
            if left == 0:
                kill()

    return reach


def _nothing(_: str) -> None:
    """Do nothing: no failpoint is set."""
