"""What a forked child does, and what it says."""

import os
import pickle
import traceback
from collections.abc import Callable
from typing import TypeVar

__all__ = ["in_child"]

T = TypeVar("T")


def in_child(work: Callable[[], T]) -> T:
    """Fork; do the work in the child alone; return what it returned there."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # it must not go on as a second pytest, whatever happens
        try:
            result: tuple[bool, object] = (True, work())
        except BaseException:
            result = (False, traceback.format_exc())
        try:
            os.write(writing, pickle.dumps(result))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    done, value = pickle.loads(told)  # noqa: S301  # from our own child
    assert done, value
    return value  # type: ignore[no-any-return]  # what work returned
