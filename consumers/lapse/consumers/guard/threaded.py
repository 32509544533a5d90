"""May this session go on? The guard of a threaded or pre-forked service (gunicorn, uWSGI, Django, Flask).

The same guard as for asynchronous services, in a thread of its own with its own loop; requests ask it from any thread
without a lock, for an answer is one look-up in what that thread alone writes. It starts by itself with the first check
of a process, which waits until the guard is fresh (at most `ready_timeout_s`), so that it is right from the first
answer; or earlier by `start()`, as in gunicorn's `post_fork`. A guard made before a fork starts anew in each child, and
shares nothing with the parent's or another child's.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from lapse.consumers.clock import monotonic_ms
from lapse.consumers.guard.decisions import Decision, Ended, OnStale
from lapse.consumers.guard.denials import SESSION_LIFE_MAX_MS
from lapse.consumers.guard.feed import Feed
from lapse.consumers.guard.guard import Guard
from lapse.consumers.guard.hooks import Hook, OnEnded
from lapse.consumers.loop_thread import CALL_ERRORS, InThread, LoopThread, end_at_exit, has_ended
from lapse.schemas import GuardStatus

__all__ = ["SyncGuard", "SyncHook"]

_log = logging.getLogger("lapse.consumers")

_START_TIMEOUT_S: Final = 5.0
"""Beyond ready_timeout_s: for a machine so busy that the guard's own timeout comes late."""

_STOP_TIMEOUT_S: Final = 15.0


class SyncHook:
    """One registration; `cancel` ends it. It is kept by the guard's loop, which nothing here waits for."""

    def __init__(self, guard: "SyncGuard", callback: OnEnded, session: str | None, **known: Any) -> None:
        self._guard = guard
        self._callback = callback
        self._session = session
        self._known = known
        self._hook: Hook | None = None  # the loop's, from when it has registered it
        self._cancelled = False

    def cancel(self) -> None:
        """Call it no more. Harmless if it was called or cancelled before."""
        self._cancelled = True
        self._guard._of_all.pop(self, None)
        self._guard._in_loop(self._remove)

    def _register(self) -> None:
        if not self._cancelled:
            self._hook = self._guard._inner.on_ended(self._call, self._session, **self._known)

    def _remove(self) -> None:
        if self._hook is not None:
            self._hook.cancel()

    def _call(self, ended: Ended) -> Awaitable[object] | object:
        return None if self._cancelled else self._callback(ended)


class SyncGuard(InThread[Guard]):
    """Refuses ended sessions; `with` starts and stops it, and so does the first check.

    Arguments are those of `Guard`. All methods may be called from any thread.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        bootstrap_servers: str | Sequence[str] | None = None,
        *,
        service: str,
        instance: str | None = None,
        prefix: str = "lapse.",
        stale_after_ms: int = 10_000,
        on_stale: OnStale = "allow",
        session_life_max_ms: int = SESSION_LIFE_MAX_MS,
        ready_timeout_s: float = 10.0,
        report: bool = True,
        client: Mapping[str, Any] | None = None,
        feed: Feed | None = None,
        clock: Callable[[], float] = monotonic_ms,
    ) -> None:
        self.service = service
        self._ready_timeout_s = ready_timeout_s
        self._of_all: dict[SyncHook, None] = {}  # hooks of all sessions, which a child takes over
        super().__init__(
            lambda: Guard(
                bootstrap_servers,
                service=service,
                instance=instance,
                prefix=prefix,
                stale_after_ms=stale_after_ms,
                on_stale=on_stale,
                session_life_max_ms=session_life_max_ms,
                ready_timeout_s=ready_timeout_s,
                report=report,
                client=client,
                feed=feed,
                clock=clock,
            )
        )

    def _renew(self) -> None:
        super()._renew()
        self._guard: Guard | None = None  # the inner one, from when it has been started: what check asks

    def start(self) -> None:
        """Start in this process, and return when the guard is fresh, or stale for one of the reasons of Guard.start.

        Started already: it does nothing. Called by several threads: all wait for the one start.
        """
        if self._thread is None and self._has_thread:
            self._guard = None  # not started yet, or stopped
        if self._guard is None:
            self._started()

    def stop(self) -> None:
        """Stop reading. `check` goes on answering, soon stale."""
        with self._starting:
            thread, self._thread = self._thread, None
            if thread is None:
                return
            try:
                thread.call(self._inner.stop(), _STOP_TIMEOUT_S)
            except CALL_ERRORS:
                _log.warning("the guard of %s did not stop in time", self.service)
            thread.stop()
            has_ended(self)

    def check(
        self,
        session: str,
        *,
        subject: str | None = None,
        tenant: str | None = None,
        started_at: int | None = None,
        on_stale: OnStale | None = None,
    ) -> Decision:
        """Return whether the session may go on, as `Guard.check` does; the first check of a process starts it."""
        guard = self._guard
        if guard is None:
            guard = self._started()
        return guard.check(session, subject=subject, tenant=tenant, started_at=started_at, on_stale=on_stale)

    def on_ended(
        self,
        callback: OnEnded,
        session: str | None = None,
        *,
        subject: str | None = None,
        tenant: str | None = None,
        started_at: int | None = None,
    ) -> SyncHook:
        """Call back when the session ends, or for each session that ends from now on, as `Guard.on_ended` does.

        It does not wait for the guard's thread, also where that is busy: what is refused already is called there soon.
        The callback runs in that thread, which must not wait for long; an asynchronous one in the guard's loop.
        A hook of all sessions is taken over by children that are forked afterwards, that of one session is not: what it
        closes is open in this process.
        """
        hook = SyncHook(self, callback, session, subject=subject, tenant=tenant, started_at=started_at)
        if session is None:
            self._of_all[hook] = None
        else:
            self.start()
        self._in_loop(hook._register)
        return hook

    @property
    def checks(self) -> int:
        """Return how many checks this process has made."""
        return self._inner.checks

    @property
    def refused(self) -> int:
        """Return how many of them refused."""
        return self._inner.refused

    @property
    def allowed_while_stale(self) -> int:
        """Return how many of them let pass although the guard was stale."""
        return self._inner.allowed_while_stale

    @property
    def fresh(self) -> bool:
        """Return whether this process's guard knows enough to let sessions pass: else on_stale decides."""
        return self._inner.fresh

    @property
    def stale_ms(self) -> int:
        """Return how old the guard's knowledge is."""
        return self._inner.stale_ms

    @property
    def why_stale(self) -> str | None:
        """Return why the guard is stale, as a sentence, or None where it is fresh."""
        return self._inner.why_stale

    @property
    def entries(self) -> int:
        """Return how many denials and cutoffs are kept."""
        return self._inner.entries

    def status(self) -> GuardStatus:
        """Return what the guard reports once a second."""
        return self._inner.status()

    def after_fork(self) -> None:
        """In a forked child: start anew, with nothing of the parent's."""
        super().after_fork()
        for hook in self._of_all:
            hook._register()

    def _started(self) -> Guard:
        """Start, and return the guard; where no thread can be had it is stale, and the next check tries again."""
        if self._thread is not None and self._thread.is_here:
            return self._inner  # a hook asks while the guard starts
        with self._starting:
            if self._has_thread and self._thread is None:
                try:
                    self._thread = LoopThread(f"lapse-guard-{self.service}")
                    end_at_exit(self)
                except RuntimeError as error:
                    _log.warning("the guard of %s cannot start a thread and is stale: %s", self.service, error)
                    return self._inner
                try:
                    self._thread.call(self._inner.start(), self._ready_timeout_s + _START_TIMEOUT_S)
                except CALL_ERRORS:
                    _log.warning("the guard of %s takes long to start and is stale meanwhile", self.service)
            self._guard = self._inner
            return self._guard

    def _in_loop(self, work: Callable[[], None]) -> None:
        """Do something in the thread that owns the hooks, one after the other; do not wait for it."""
        thread = self._thread
        if thread is not None and not thread.is_here:
            try:
                thread.loop.call_soon_threadsafe(work)
                return
            except RuntimeError:  # the loop has ended: nobody owns them
                pass
        work()
