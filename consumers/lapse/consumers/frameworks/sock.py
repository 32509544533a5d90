"""How does a WebSocket that a thread serves end with its session? (simple-websocket, which flask-sock uses)

    the guard's thread    notes the end, so that the application receives and sends nothing from then on, and goes on
    a thread of its own   closes with 4001, which may have to wait for a client that reads slowly; gives the client a
                          second to answer, and breaks the connection
    the request's thread  waits in `receive`, and learns of it as of a client that has gone: ConnectionClosed

The library alone would not do: a close of its own leaves whoever waits in `receive` there until the client answers,
and takes a client that answers by further messages for connected again.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from socket import SHUT_RDWR
from typing import Any, Final

from simple_websocket import ConnectionClosed, Server
from wsproto.utilities import LocalProtocolError

from lapse.consumers.frameworks.identity import ActiveSession
from lapse.consumers.frameworks.problem import CLOSE_CODE
from lapse.consumers.guard import Ended, SyncGuard

__all__ = ["WebSocket", "serving"]

_ANSWER_S: Final = 1.0
"""For the client to take the close and to answer it; some round trips."""


class WebSocket:
    """A WebSocket up to the end of its session; all else is that of the `simple_websocket.Server`.

    Args:
        inner: the server's side of the connection.
        over: is set when the session ends.
        touch: called for each message from the client.
    """

    def __init__(self, inner: Server, over: threading.Event, touch: Callable[[], None] | None) -> None:
        self._inner = inner
        self._over = over
        self._touch = touch
        self._reason = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def receive(self, timeout: float | None = None) -> Any:
        """Return the next message, None when the timeout is over.

        Raises:
            ConnectionClosed: the session has ended, or the client has gone.
        """
        self._raise_if_over()
        try:
            message = self._inner.receive(timeout)
        finally:
            self._raise_if_over()
        if message is not None and self._touch is not None:
            self._touch()
        return message

    def send(self, data: str | bytes) -> None:
        """Send a message.

        Raises:
            ConnectionClosed: the session has ended, or the client has gone.
        """
        self._raise_if_over()
        try:
            self._inner.send(data)
        finally:
            self._raise_if_over()

    def end(self, ended: Ended) -> None:
        """The guard's hook, in its thread."""
        self._reason = f"session ended: {ended.cause.value}"
        self._over.set()
        threading.Thread(target=self._close, name="lapse-websocket-close", daemon=True).start()

    def _close(self) -> None:
        inner = self._inner
        with suppress(OSError, ConnectionClosed, LocalProtocolError):  # it has gone, or takes nothing
            inner.sock.settimeout(_ANSWER_S)
            inner.close(CLOSE_CODE, self._reason)
            inner.thread.join(_ANSWER_S)  # it ends with the client's answer
        with suppress(OSError):
            inner.sock.shutdown(SHUT_RDWR)

    def _raise_if_over(self) -> None:
        if self._over.is_set():
            raise ConnectionClosed(CLOSE_CODE, self._reason)


@contextmanager
def serving(
    inner: Server,
    guard: SyncGuard,
    session: ActiveSession,
    over: threading.Event,
    touch: Callable[[], None] | None,
) -> Iterator[WebSocket]:
    """Yield the WebSocket for its handler, and close it when the session ends meanwhile."""
    socket = WebSocket(inner, over, touch)
    hook = guard.on_ended(
        socket.end,
        session.reference,
        subject=session.subject,
        tenant=session.tenant,
        started_at=session.started_at,
    )
    try:
        yield socket
    finally:
        hook.cancel()
