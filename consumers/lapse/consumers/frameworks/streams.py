"""How does a response that is sent part by part end with its session?

A thread that waits in an iterator cannot be interrupted: between two parts the end is seen, and nothing is sent after
it. What waits can wait with the event that is set when the session ends, and so ends at once. An asynchronous iterator
is cancelled where it waits.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from lapse.consumers.frameworks.identity import ActiveSession
from lapse.consumers.guard import Ended, SyncGuard, SyncHook

__all__ = ["Stream", "async_stream", "watching"]

T = TypeVar("T")


class Stream(Iterator[Any]):
    """The parts of a response, up to the end of its session.

    Args:
        parts: the application's, bytes or text.
        guard: tells the end.
        session: whose response it is.
        over: set when the session ends, for applications that wait.
        length: the bytes that were promised (Content-Length) or None; asked after the first part, since a WSGI
            application may start its response as late as there. A response that is complete is never cut; one that was
            promised longer is broken off, since only a broken connection tells the client that bytes are missing.
    """

    def __init__(
        self,
        parts: Iterable[Any],
        guard: SyncGuard,
        session: ActiveSession,
        over: threading.Event,
        length: Callable[[], int | None],
        *,
        started: bool = True,
    ) -> None:
        self._source = parts
        self._parts = iter(parts)
        self._guard = guard
        self._session = session
        self._over = over
        self._length = length
        self._hook: SyncHook | None = None
        self._sent = 0
        self._first = True
        if started and length() is None:
            self._watch()

    def __next__(self) -> Any:
        self._cut()
        part = next(self._parts)
        self._cut()
        if self._first:
            self._first = False
            length = self._length()
            if self._hook is None and (length is None or _size(part) < length):
                self._watch()
        self._sent += _size(part)
        return part

    def close(self) -> None:
        """Called by the server when the response is over, one way or the other."""
        try:
            if self._hook is not None:
                self._hook.cancel()
        finally:
            close = getattr(self._source, "close", None)
            if close is not None:
                close()

    def _watch(self) -> None:
        session = self._session
        self._hook = self._guard.on_ended(
            self._ended,
            session.reference,
            subject=session.subject,
            tenant=session.tenant,
            started_at=session.started_at,
        )

    def _ended(self, ended: Ended) -> None:
        self._over.set()

    def _cut(self) -> None:
        if not self._over.is_set():
            return
        length = self._length()
        if length is not None and self._sent < length:
            raise ConnectionAbortedError("the session ended while its response was sent")
        raise StopIteration


def _size(part: bytes | str) -> int:
    return len(part.encode()) if isinstance(part, str) else len(part)


async def async_stream(parts: AsyncIterable[T], guard: SyncGuard, session: ActiveSession) -> AsyncGenerator[T, None]:
    """Yield the parts up to the end of the session; what waits for the next one is cancelled."""
    over = asyncio.Event()
    iterator = aiter(parts)
    ending = asyncio.ensure_future(over.wait())
    try:
        async with watching(guard, session, lambda _: over.set()):
            while not over.is_set():
                part = asyncio.ensure_future(anext(iterator, _END))
                try:
                    await asyncio.wait((part, ending), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not part.done():
                        part.cancel()
                        await asyncio.wait((part,))
                if over.is_set() or part.cancelled():
                    if not part.cancelled():
                        part.exception()  # retrieved: what it was is of no interest any more
                    break
                value = part.result()
                if isinstance(value, _End):
                    break
                yield value
    finally:
        ending.cancel()
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()


@asynccontextmanager
async def watching(guard: SyncGuard, session: ActiveSession, call: Callable[[Ended], None]) -> AsyncIterator[None]:
    """Call in the running loop when the session ends, while this is entered."""
    loop = asyncio.get_running_loop()

    def ended(ending: Ended) -> None:
        try:
            loop.call_soon_threadsafe(call, ending)
        except RuntimeError:  # the loop has ended, and what was open in it
            return

    # In a thread, for it starts a guard that has been stopped, and waits until that is fresh.
    hook = await asyncio.to_thread(
        guard.on_ended,
        ended,
        session.reference,
        subject=session.subject,
        tenant=session.tenant,
        started_at=session.started_at,
    )
    try:
        yield
    finally:
        hook.cancel()


class _End:
    pass


_END = _End()
