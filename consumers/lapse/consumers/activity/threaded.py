"""How does a threaded or pre-forked service tell what its users do?

The same publisher as for asynchronous services, in a thread of its own with its own loop: requests leave their notes in
its inbox, at 0.5 us each, and never wait. It starts by itself with the first note of a process. A publisher made before
a fork starts anew in each child: what the parent had noted is the parent's to tell.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from lapse.consumers.activity.coalescer import SESSIONS_MAX
from lapse.consumers.activity.notes import Note, Notes
from lapse.consumers.activity.publisher import ActivityPublisher, PublisherStats
from lapse.consumers.clock import monotonic_ms
from lapse.consumers.loop_thread import CALL_ERRORS, InThread, LoopThread, end_at_exit, has_ended

__all__ = ["SyncActivityPublisher"]

_log = logging.getLogger("lapse.consumers")

_STOP_TIMEOUT_S: Final = 10.0
"""Beyond the time for flushing: the client's own."""


class SyncActivityPublisher(Notes, InThread[ActivityPublisher]):
    """Publishes activity; `with` starts and stops it, and so does the first note. From any thread.

    Arguments are those of `ActivityPublisher`. A process that ends in the ordinary way flushes for 5 s at most.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        bootstrap_servers: str | Sequence[str],
        *,
        service: str,
        prefix: str = "lapse.",
        touch_interval_ms: int = 5_000,
        delivery_timeout_ms: int = 3_000,
        sessions_max: int = SESSIONS_MAX,
        client: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = monotonic_ms,
    ) -> None:
        self.service = service
        self._clock = clock
        super().__init__(
            lambda: ActivityPublisher(
                bootstrap_servers,
                service=service,
                prefix=prefix,
                touch_interval_ms=touch_interval_ms,
                delivery_timeout_ms=delivery_timeout_ms,
                sessions_max=sessions_max,
                client=client,
                clock=clock,
            )
        )

    def _renew(self) -> None:
        super()._renew()
        self._begun = not self._has_thread  # whether a note need not look for the thread

    def start(self) -> None:
        """Start in this process, without waiting for a broker. Started already: it does nothing.

        Raises:
            RuntimeError: no thread can be had.
        """
        with self._starting:
            if self._thread is None and self._has_thread:
                thread = LoopThread(f"lapse-activity-{self.service}")
                self._inner._resume()
                self._thread = thread
                end_at_exit(self)
                thread.submit(self._inner.start())
            self._begun = True

    def stop(self, timeout_s: float = 5.0) -> None:
        """Write what is waiting, for at most timeout_s, and stop; what is noted afterwards is dropped and counted."""
        with self._starting:
            thread, self._thread = self._thread, None
            self._begun = True  # a note does not start it again
            if thread is None:
                self._inner._refuse()
                return
            try:
                thread.call(self._inner.stop(timeout_s), timeout_s + _STOP_TIMEOUT_S)
            except CALL_ERRORS:
                self._inner._refuse()
                _log.warning("the publisher of %s did not stop in time", self.service)
            thread.stop()
            has_ended(self)

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Write all that is noted, also what still cools; return whether it stands in the log within timeout_s."""
        thread = self._thread
        if thread is None:
            return self.waiting == 0
        try:
            return thread.call(self._inner.flush(timeout_s), timeout_s + 1.0)
        except CALL_ERRORS:
            return False

    @property
    def waiting(self) -> int:
        """Return how many sessions and events are to be written now; what cools is not among them."""
        return self._inner.waiting

    @property
    def stats(self) -> PublisherStats:
        """Return what it has done by now, in this process."""
        return self._inner.stats

    def _enter(self, note: Note) -> None:
        if not self._begun:
            self._begin()
        self._inner._enter(note)

    def _begin(self) -> None:
        try:
            self.start()
        except RuntimeError as error:  # the note waits in the inbox, and the next one tries again
            _log.warning("the publisher of %s cannot start a thread: %s", self.service, error)
