"""Who wants to know that a session ended?

A hook is called once per ending: on the ending, or on the revocation that comes first. Hooks of one session are for
what is open for it (a WebSocket, a stream, a database session); a hook of all sessions is called for what is learned
after the guard's start, not for the history it reads first.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from inspect import isawaitable
from typing import TypeAlias

from lapse.consumers.guard.decisions import Decision, Ended
from lapse.consumers.guard.denials import EVERYONE, Scope

__all__ = ["Hook", "Hooks", "OnEnded"]

_log = logging.getLogger("lapse.consumers")

OnEnded: TypeAlias = Callable[[Ended], Awaitable[object] | object]
"""What is called; an awaitable it returns is awaited in a task of its own."""


class Hook:
    """One registration; `cancel` ends it."""

    __slots__ = ("_hooks", "callback", "fired", "session", "started_at", "subject", "tenant")

    def __init__(
        self,
        hooks: "Hooks",
        callback: OnEnded,
        session: str | None,
        subject: str | None,
        tenant: str | None,
        started_at: int | None,
    ) -> None:
        self._hooks = hooks
        self.callback = callback
        self.session = session
        self.subject = subject
        self.tenant = tenant
        self.started_at = started_at
        self.fired = False

    def cancel(self) -> None:
        """Call it no more. Harmless if it was called or cancelled before."""
        self._hooks.remove(self)


class Hooks:
    """The hooks of one guard.

    Attributes:
        failures: hooks that raised; the error is logged, the guard goes on.
    """

    def __init__(self) -> None:
        # Dictionaries as ordered sets: hooks are called in the order of their registration, and go in constant time.
        self._of_all: dict[Hook, None] = {}
        self._of_session: dict[str, dict[Hook, None]] = {}
        self._of_subject: dict[Scope, dict[Hook, None]] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self.failures = 0

    def __bool__(self) -> bool:
        """Return whether there is any hook."""
        return bool(self._of_all or self._of_session)

    def add(
        self,
        callback: OnEnded,
        session: str | None,
        subject: str | None,
        tenant: str | None,
        started_at: int | None,
    ) -> Hook:
        """Register a hook: of all sessions where session is None, else of that one."""
        hook = Hook(self, callback, session, subject, tenant, started_at)
        if session is None:
            self._of_all[hook] = None
        else:
            self._of_session.setdefault(session, {})[hook] = None
            if started_at is not None:
                self._of_subject.setdefault((tenant, subject), {})[hook] = None
        return hook

    def remove(self, hook: Hook) -> None:
        """Call it no more. Harmless if it was called or removed before."""
        self._of_all.pop(hook, None)
        if hook.session is not None:
            _discard(self._of_session, hook.session, hook)
            _discard(self._of_subject, (hook.tenant, hook.subject), hook)

    def wanted(self, session: str, *, news: bool) -> bool:
        """Return whether any hook is to be called for a session's ending."""
        return session in self._of_session or (news and bool(self._of_all))

    def session_ended(self, ended: Ended, *, news: bool) -> int:
        """Call the hooks of a session that is refused from now on; those of all sessions only for news.

        Returns:
            how many were called.
        """
        called = self.call(tuple(self._of_session.get(ended.session, ())), ended)
        if news:
            called += self.call(tuple(self._of_all), ended)
        return called

    def scope_cut(self, scope: Scope, denial: Decision) -> int:
        """Call the hooks of the sessions that a cutoff covers and whose start is known; return how many."""
        at = denial.due_at
        if at is None or denial.cause is None:
            return 0
        called = 0
        for hook in self._covered(scope):
            if hook.session is not None and hook.started_at is not None and hook.started_at <= at:
                ended = Ended(hook.session, hook.subject, hook.tenant, denial.cause, at, None, denial.revocation)
                called += self.call((hook,), ended)
        return called

    def call(self, hooks: Iterable[Hook], ended: Ended) -> int:
        """Call hooks; one that raises is logged and counted, and keeps no other from being called."""
        called = 0
        for hook in hooks:
            if hook.session is not None:
                if hook.fired:
                    continue
                hook.fired = True
                self.remove(hook)
            called += 1
            try:
                result = hook.callback(ended)
                if isawaitable(result):
                    task = asyncio.ensure_future(_await(result))
                    self._tasks.add(task)
                    task.add_done_callback(self._done)
            except Exception:  # the user's code: whatever it raises, the other hooks and the guard go on
                self._failed()
        return called

    async def close(self) -> None:
        """Cancel what asynchronous hooks are still doing."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _covered(self, scope: Scope) -> list[Hook]:
        tenant, subject = scope
        if subject is not None:
            return list(self._of_subject.get(scope, ()))
        return [
            hook
            for (tenant_of_hook, _), hooks in self._of_subject.items()
            if scope == EVERYONE or tenant_of_hook == tenant
            for hook in hooks
        ]

    def _done(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failed(task.exception())

    def _failed(self, error: BaseException | None = None) -> None:
        self.failures += 1
        _log.error("a hook of on_ended failed", exc_info=error if error is not None else True)


async def _await(result: Awaitable[object]) -> object:
    return await result


def _discard(hooks_of: dict[str, dict[Hook, None]] | dict[Scope, dict[Hook, None]], key: object, hook: Hook) -> None:
    hooks = hooks_of.get(key)  # type: ignore[call-overload]  # both kinds of key come with their own dictionary
    if hooks is not None:
        hooks.pop(hook, None)
        if not hooks:
            del hooks_of[key]  # type: ignore[arg-type]  # likewise
