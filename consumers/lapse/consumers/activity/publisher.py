"""How does a service tell what its users do, without ever waiting for it?

The methods (notes.py) only note: they return at once, never raise, and never touch the network. What is wrong is
dropped, counted and logged without its value. The pump (pump.py) writes what is ready in the order that outbox.py says.
The methods may be called from any thread, also before the start: what is noted outside the loop's thread lies in an
inbox until the loop takes it. After `stop` nothing is noted any more.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Literal, Self

from pydantic import ValidationError

from lapse.consumers.activity.coalescer import SESSIONS_MAX, Coalescer
from lapse.consumers.activity.notes import Note, Notes
from lapse.consumers.activity.outbox import EVENTS_MAX, Outbox
from lapse.consumers.activity.packing import Activity, Event
from lapse.consumers.activity.pump import Pump
from lapse.consumers.clock import monotonic_ms
from lapse.consumers.producer import Producer
from lapse.schemas import (
    NAME_LENGTH_MAX,
    RECORD_BYTES_MAX,
    ConfigError,
    SessionClosed,
    SessionRefreshed,
    SessionTouched,
    TopicNames,
    encode,
    is_session_reference,
    subject_key,
)

__all__ = ["ActivityPublisher", "PublisherStats"]

_log = logging.getLogger("lapse.consumers")

INBOX_MAX: Final = 100_000
"""Notes of other threads that the loop has not taken yet: about 250 bytes each, 25 MB. At 5,000 a second that is a loop
that stands still for 20 s."""

_DRAIN_MAX: Final = 1_000
"""Notes taken from the inbox before the loop's other work gets its turn: about 2 ms."""

_COMPLAINT_INTERVAL_MS: Final = 10_000.0

_AGE_BYTES_MAX: Final = 20
"""By how much a record may grow with its age: an integer of 64 bits."""


@dataclass(slots=True)
class PublisherStats:
    """What a publisher has done since it was made.

    Attributes:
        touches: calls of `touched`.
        records: records that stand in the log.
        malformed: calls dropped because an argument cannot be one (a session that is no reference, a name too long).
        dropped: activities dropped because SESSIONS_MAX or EVENTS_MAX was reached, or too old to be told.
        failures: producers that were given up, and attempts to connect that failed; nothing is lost by them.
        after_stop: calls after `stop`, and what no loop had taken from the inbox by then; dropped.
        waiting: sessions and events that are to be written now, and what lies in the inbox.
    """

    touches: int = 0
    records: int = 0
    malformed: int = 0
    dropped: int = 0
    failures: int = 0
    after_stop: int = 0
    waiting: int = 0


class ActivityPublisher(Notes):
    """Publishes activity; `async with` starts and stops it.

    Args:
        bootstrap_servers: of Kafka.
        service: this service's name, in every record.
        prefix: of the topics.
        touch_interval_ms: a session's touches are told at most so late; plus the publishing delay it must stay below
            the shortest idle timeout. 1 to 600,000.
        delivery_timeout_ms: after this a batch without acknowledgement is written anew. At least 100.
        sessions_max: sessions whose touches are joined at a time.
        client: further settings of aiokafka's client, such as security_protocol and ssl_context.
        clock: monotonic ms.

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
        if not 1 <= touch_interval_ms <= 600_000:
            raise ConfigError(f"touch_interval_ms is {touch_interval_ms}: 1 to 600,000 is allowed")
        if delivery_timeout_ms < 100:
            raise ConfigError(f"delivery_timeout_ms is {delivery_timeout_ms}: at least 100 is needed")
        if not 1 <= len(service) <= 256:
            raise ConfigError("service is the name of this service: 1 to 256 characters")
        self.service = service
        self._counts = PublisherStats()
        self._clock = clock
        self._topic = TopicNames(prefix).activity
        self._delivery_timeout_s = delivery_timeout_ms / 1000
        self._settings = {**(client or {}), "bootstrap_servers": bootstrap_servers}
        self._coalescer = Coalescer(touch_interval_ms, sessions_max)
        self._outbox = Outbox(self._coalescer, service=service, touch_interval_ms=touch_interval_ms, clock=clock)
        self._pump: Pump | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: int | None = None
        self._inbox: deque[Note] = deque()
        self._waking = False  # whether the loop has been told of the inbox, and has not looked yet
        self._stopped = False
        self._complained: dict[str, float] = {}
        self._dropping = threading.Lock()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start writing. It does not wait for a broker: a service starts whether Kafka is there or not."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._pump = Pump(
            Producer(self._settings, f"lapse-activity-{self.service}", (self._topic,)),
            self._topic,
            self._outbox,
            self._coalescer,
            delivery_timeout_s=self._delivery_timeout_s,
            clock=self._clock,
            complain=self._complain,
        )
        self._pump.start()
        self._resume()
        self._drain()

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Write what is waiting, for at most timeout_s, and stop; what is noted afterwards is dropped and counted."""
        if self._pump is None:
            self._refuse()
            return
        await self.flush(timeout_s)
        self._refuse()
        await self._pump.stop()
        self._counts.records += self._pump.records
        self._counts.failures += self._pump.failures
        self._pump = self._loop = None

    async def flush(self, timeout_s: float = 5.0) -> bool:
        """Write all that is noted, also what still cools; return whether it stands in the log within timeout_s."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._inbox:
                    self._drain()
                    await asyncio.sleep(0)
                self._coalescer.hurry_all()
                while self.waiting:
                    self._woken()
                    await asyncio.sleep(0.002)
        except TimeoutError:
            _log.warning("activity not written within %g s: %d sessions and events", timeout_s, self.waiting)
            return False
        return True

    @property
    def waiting(self) -> int:
        """Return how many sessions and events are to be written now; what cools is not among them."""
        return self._outbox.events_kept + self._coalescer.unsent + len(self._inbox)

    @property
    def stats(self) -> PublisherStats:
        """Return what it has done by now."""
        stats = replace(self._counts, waiting=self.waiting)
        stats.dropped += self._coalescer.expired + self._outbox.expired
        if self._pump is not None:
            stats.records += self._pump.records
            stats.failures += self._pump.failures
        return stats

    def _refuse(self) -> None:
        """Take no more notes, and give up those that nobody has looked at."""
        self._stopped = True
        late, self._inbox = len(self._inbox), deque()
        if late:
            self._drop("after_stop", "activity is noted after stop() and not told", late)

    def _resume(self) -> None:
        """Take notes again, for it is about to be started."""
        self._stopped = False

    def _enter(self, note: Note) -> None:
        """Go on in the loop's thread: at once, where this is it."""
        if threading.get_ident() != self._thread:
            self._enter_from_elsewhere(note)
        elif self._stopped:
            self._drop("after_stop", "activity is noted after stop() and not told")
        else:
            if self._inbox:
                self._drain()
            self._attempt(note)

    def _enter_from_elsewhere(self, note: Note) -> None:
        """Leave the note for the loop, and wake it if it is not woken already."""
        if self._stopped:
            self._drop("after_stop", "activity is noted after stop() and not told")
            return
        if len(self._inbox) >= INBOX_MAX:
            self._drop("dropped", f"activity is dropped: {INBOX_MAX} wait for the publisher's event loop")
            return
        self._inbox.append(note)
        if self._loop is not None and not self._waking:
            self._waking = True
            try:
                self._loop.call_soon_threadsafe(self._drain)
            except RuntimeError:
                self._waking = False
                self._inbox.clear()
                self._drop("dropped", "activity is dropped: the publisher's event loop is closed")

    # What follows runs in the loop's thread only.

    def _drain(self) -> None:
        """Take what other threads have noted, some of it at a time."""
        self._waking = False  # before the first look: what is noted after the last one wakes the loop again
        for _ in range(_DRAIN_MAX):
            try:
                note = self._inbox.popleft()
            except IndexError:
                return
            self._attempt(note)
        if self._loop is not None and not self._waking:
            self._waking = True
            self._loop.call_soon(self._drain)

    def _attempt(self, note: Note) -> None:
        kind, session, subject, tenant, at, fields = note
        try:
            if kind is SessionTouched:
                self._counts.touches += 1
                self._touch(session, subject, tenant, at, fields)
            else:
                self._add(kind, session, subject, tenant, at, fields or {})
        except Exception:  # whatever is wrong with an argument: a request must not fail for it
            self._drop("malformed", "activity was dropped: an argument is of a wrong type")

    def _woken(self) -> None:
        if self._pump is not None:
            self._pump.wake()

    def _touch(
        self, session: str, subject: str, tenant: str | None, now: float, fields: Mapping[str, object] | None
    ) -> None:
        known = self._coalescer.knows(session, subject, tenant)
        says_where = fields is not None and (fields["device"] is not None or fields["network"] is not None)
        if fields is not None and (fields["hold_ms"] is not None or (says_where and not known)):
            self._add(SessionTouched, session, subject, tenant, now, fields)
        else:
            self._join(session, subject, tenant, now, None if fields is None else fields["session_age_ms"])

    def _join(self, session: str, subject: str, tenant: str | None, now: float, session_age_ms: object) -> None:
        """Note a touch that may be joined with others of its session."""
        if not self._coalescer.knows(session, subject, tenant) and not _are_names(session, subject, tenant):
            self._drop("malformed", "a touch was dropped: its session is no reference, or a name no name")
            return
        if session_age_ms is not None and type(session_age_ms) is not int:
            raise TypeError("session_age_ms")
        dropped = self._coalescer.dropped
        started = None if session_age_ms is None else now - session_age_ms
        if self._coalescer.touch(session, subject, tenant, now, started):
            self._woken()
        elif self._coalescer.dropped != dropped:
            self._drop("dropped", "touches of further sessions are dropped: sessions_max is reached")

    def _add(
        self,
        kind: type[Activity],
        session: str,
        subject: str,
        tenant: str | None,
        now: float,
        fields: Mapping[str, object],
    ) -> None:
        if self._outbox.events_kept >= EVENTS_MAX:
            self._drop("dropped", f"activity is dropped, or told as a mere touch: {EVENTS_MAX} wait for the broker")
            if kind is not SessionClosed and kind is not SessionRefreshed:
                # Of what counts as a touch so much is kept. A start has no age of its session: it is the beginning.
                self._join(session, subject, tenant, now, fields.get("session_age_ms", 0))
            return
        try:
            names_are_right = _are_names(session, subject, tenant)
            values = {"session": session, "subject": subject, "tenant": tenant, "service": self.service, "age_ms": 0}
            activity = kind.model_validate({**values, **fields}) if names_are_right else None
            if activity is not None and len(encode(activity)) > RECORD_BYTES_MAX - _AGE_BYTES_MAX:
                activity = None
        except (ValidationError, TypeError):
            activity = None  # the error would repeat the value, which may be a secret
        if activity is None:
            self._drop("malformed", f"{kind.__name__} was dropped: its session is no reference, or a field is wrong")
            return
        if kind is SessionClosed:
            self._coalescer.hurry(session)
        elif kind is not SessionRefreshed:
            self._coalescer.told(session, subject, tenant, now)
        self._outbox.add(Event(activity, now))
        self._woken()

    def _drop(self, counter: Literal["malformed", "dropped", "after_stop"], message: str, by: int = 1) -> None:
        """Count what is dropped, and say so without the value, which may be a secret. From any thread."""
        with self._dropping:
            count = getattr(self._counts, counter) + by
            setattr(self._counts, counter, count)
            self._complain(message, f"{count} so far")

    def _complain(self, message: str, detail: str) -> None:
        """Log a message at most once in _COMPLAINT_INTERVAL_MS."""
        now = self._clock()
        if now - self._complained.get(message, -_COMPLAINT_INTERVAL_MS) >= _COMPLAINT_INTERVAL_MS:
            self._complained[message] = now
            _log.warning("%s (%s)", message, detail)


def _are_names(session: str, subject: str, tenant: str | None) -> bool:
    """Return whether the wire takes these, as is_session_reference and the models' Subject and Tenant say."""
    if not is_session_reference(session) or not 1 <= len(subject) <= NAME_LENGTH_MAX:
        return False
    if tenant is not None and (not 1 <= len(tenant) <= NAME_LENGTH_MAX or "/" in tenant):
        return False
    try:
        subject_key(subject, tenant)
    except UnicodeEncodeError:  # lone surrogates are no text that JSON could carry
        return False
    return True
