"""How does a threaded or pre-forked service run what needs an event loop?

In one thread of its own, a daemon, with its own loop, that requests hand work to (`InThread`). A process that forks has
the thread in the parent only; the child is told, starts anew when it first needs to, and shares nothing:

    - the child's copies of the loop's sockets, and of its epoll, are replaced by /dev/null. Closed in the ordinary way
      they would take the parent's sockets out of the epoll that both processes share; left open, a broker would see the
      parent's connection alive for as long as any child lives
    - the child keeps the parent's objects unfinalized, for their finalizers are about those sockets
"""

import asyncio
import atexit
import concurrent.futures

# The loop's own thread would import it at its first look-up of a name, and a fork in that moment leaves the child with
# half a module.
import concurrent.futures.thread
import contextlib
import logging
import os
import selectors
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

__all__ = ["CALL_ERRORS", "InThread", "LoopThread", "end_at_exit", "has_ended"]

_log = logging.getLogger("lapse.consumers")

T = TypeVar("T")

CALL_ERRORS: Final = (TimeoutError, RuntimeError, concurrent.futures.CancelledError)
"""What a call into a loop can fail with, beside what its coroutine raises: it takes too long, has ended, is ending."""

_JOIN_TIMEOUT_S: Final = 5.0


class LoopThread:
    """An event loop in a thread of its own, from its making to `stop`."""

    def __init__(self, name: str) -> None:
        self._selector = selectors.DefaultSelector()
        self.loop = asyncio.SelectorEventLoop(self._selector)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_here(self) -> bool:
        """Return whether the caller runs in this thread."""
        return threading.get_ident() == self._thread.ident

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T]":
        """Run a coroutine in the loop.

        Raises:
            RuntimeError: the loop has ended.
        """
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        except RuntimeError:
            coroutine.close()
            raise

    def call(self, coroutine: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """Run a coroutine in the loop and return its result, or raise what it raises.

        Raises:
            TimeoutError: it takes longer, and goes on.
            RuntimeError: the loop has ended, or this is its own thread, which would wait for itself.
        """
        if self.is_here:
            coroutine.close()
            raise RuntimeError("called from the loop's own thread, which would wait for itself")
        return self.submit(coroutine).result(timeout_s)

    def stop(self) -> None:
        """End the loop with all its tasks, and the thread."""
        with contextlib.suppress(RuntimeError):  # it has ended before
            self.loop.call_soon_threadsafe(self.loop.stop)
        if not self.is_here:
            self._thread.join(_JOIN_TIMEOUT_S)
            if self._thread.is_alive():
                _log.warning("the thread %s does not end and is left behind", self._thread.name)

    def abandon(self) -> None:
        """In a forked child: let go of the parent's loop."""
        _inherited.append(self)
        registered = self._selector.get_map() or {}
        numbers = {key.fd for key in registered.values()}
        numbers |= set(getattr(self.loop, "_transports", ()))  # one that does not read just now is not registered
        with contextlib.suppress(ValueError, AttributeError):  # closed, or a selector that has no number
            numbers.add(self._selector.fileno())
        null = os.open(os.devnull, os.O_RDWR)
        for number in numbers:
            os.dup2(null, number, inheritable=False)
        os.close(null)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()


class InThread(ABC, Generic[T]):
    """One of these a process, in a thread of its own; `with` starts and stops it.

    Args:
        make: makes what runs in the thread, for this process and for each child.
    """

    _has_thread = True  # one for tests has none

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._renew()
        _told.add(self)

    def _renew(self) -> None:
        """Make what belongs to one process."""
        self._inner = self._make()
        self._thread: LoopThread | None = None
        self._starting = threading.Lock()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def start(self) -> None:
        """Start in this process. Started already: it does nothing."""

    @abstractmethod
    def stop(self) -> None:
        """Stop, and end the thread."""

    def after_fork(self) -> None:
        """In a forked child: start anew, with nothing of the parent's."""
        if self._thread is not None:
            self._thread.abandon()
        _inherited.append(self._inner)
        self._renew()

    def at_exit(self) -> None:
        """The process ends in the ordinary way: so does the thread, before what it stands on."""
        self.stop()


_inherited: Final[list[object]] = []  # the parent's objects, kept from being finalized in a child
_told: "Final[weakref.WeakSet[InThread[Any]]]" = weakref.WeakSet()
_running: "Final[dict[InThread[Any], None]]" = {}  # held: what runs must be ended although its maker has forgotten it


def end_at_exit(one: InThread[Any]) -> None:
    """Call `at_exit` when the process ends in the ordinary way."""
    _running[one] = None


def has_ended(one: InThread[Any]) -> None:
    """Call `at_exit` no more."""
    _running.pop(one, None)


def _forked() -> None:
    _running.clear()
    for one in list(_told):
        one.after_fork()


def _exiting() -> None:
    for one in list(_running):
        one.at_exit()


os.register_at_fork(after_in_child=_forked)
atexit.register(_exiting)
