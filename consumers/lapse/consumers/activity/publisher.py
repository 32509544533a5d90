"""How does a service tell what its users do, without ever waiting for it?

The methods only note: they return at once, never raise, and never touch the network. What is wrong is dropped, counted
and logged without its value. The pump (pump.py) writes what is ready in the order that outbox.py says. The methods may
be called from any thread, also from before the start.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Literal, Self

from pydantic import ValidationError

from lapse.consumers.activity.coalescer import SESSIONS_MAX, Coalescer
from lapse.consumers.activity.outbox import EVENTS_MAX, Outbox
from lapse.consumers.activity.packing import Activity, Event
from lapse.consumers.activity.pump import Pump
from lapse.consumers.producer import Producer
from lapse.schemas import (
    NAME_LENGTH_MAX,
    RECORD_BYTES_MAX,
    ConfigError,
    SessionClosed,
    SessionElevated,
    SessionRefreshed,
    SessionStarted,
    SessionTouched,
    TopicNames,
    encode,
    is_session_reference,
    subject_key,
)

__all__ = ["ActivityPublisher", "PublisherStats"]

_log = logging.getLogger("lapse.consumers")

_COMPLAINT_INTERVAL_MS: Final = 10_000.0


_AGE_BYTES_MAX: Final = 20
"""By how much a record may grow with its age: an integer of 64 bits."""


def _monotonic_ms() -> float:
    return time.monotonic() * 1000


@dataclass(slots=True)
class PublisherStats:
    """What a publisher has done since it was made.

    Attributes:
        touches: calls of `touched`.
        records: records that stand in the log.
        malformed: calls dropped because an argument cannot be one (a session that is no reference, a name too long).
        dropped: activities dropped because SESSIONS_MAX or EVENTS_MAX was reached, or too old to be told.
        failures: producers that were given up, and attempts to connect that failed; nothing is lost by them.
        waiting: sessions and events that are to be written now.
    """

    touches: int = 0
    records: int = 0
    malformed: int = 0
    dropped: int = 0
    failures: int = 0
    waiting: int = 0


class ActivityPublisher:
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
        clock: Callable[[], float] = _monotonic_ms,
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
        self._complained: dict[str, float] = {}

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

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Write what is waiting, for at most timeout_s, and stop."""
        if self._pump is None:
            return
        await self.flush(timeout_s)
        await self._pump.stop()
        self._counts.records += self._pump.records
        self._counts.failures += self._pump.failures
        self._pump = self._loop = None

    async def flush(self, timeout_s: float = 5.0) -> bool:
        """Write all that is noted, also what still cools; return whether it stands in the log within timeout_s."""
        await asyncio.sleep(0)  # what other threads have noted is in the loop's queue
        self._coalescer.hurry_all()
        try:
            async with asyncio.timeout(timeout_s):
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
        return self._outbox.events_kept + self._coalescer.unsent

    @property
    def stats(self) -> PublisherStats:
        """Return what it has done by now."""
        stats = replace(self._counts, waiting=self.waiting)
        stats.dropped += self._coalescer.expired
        if self._pump is not None:
            stats.records += self._pump.records
            stats.failures += self._pump.failures
        return stats

    def started(
        self,
        session: str,
        subject: str,
        *,
        tenant: str | None = None,
        policy: str | None = None,
        device: str | None = None,
        network: str | None = None,
        attributes: Mapping[str, str] | None = None,
        token_life_ms: int | None = None,
    ) -> None:
        """Note that the subject logged in; `session` is the session's reference, here and below."""
        given: object = attributes  # whatever a caller without a type checker gives: it must not raise here
        self._note(
            SessionStarted,
            session,
            subject,
            tenant,
            policy=policy,
            device=device,
            network=network,
            attributes={} if given is None else dict(given) if isinstance(given, Mapping) else given,
            token_life_ms=token_life_ms,
        )

    def touched(
        self,
        session: str,
        subject: str,
        *,
        tenant: str | None = None,
        hold_ms: int | None = None,
        session_age_ms: int | None = None,
        device: str | None = None,
        network: str | None = None,
    ) -> None:
        """Note that the subject did something.

        Args:
            hold_ms: an upload or job that counts as activity for so long; told at once, in a record of its own.
            session_age_ms, device, network: told with a session's first touch after touch_interval_ms of silence.
        """
        self._counts.touches += 1
        now = self._clock()
        self._enter(self._touch, session, subject, tenant, now, hold_ms, session_age_ms, device, network)

    def refreshed(
        self, session: str, subject: str, *, tenant: str | None = None, generation: int | None = None
    ) -> None:
        """Note that a token of the session was refreshed. It does not count as a touch."""
        self._note(SessionRefreshed, session, subject, tenant, generation=generation)

    def elevated(
        self, session: str, subject: str, *, tenant: str | None = None, session_age_ms: int | None = None
    ) -> None:
        """Note that the subject proved itself again."""
        self._note(SessionElevated, session, subject, tenant, session_age_ms=session_age_ms)

    def closed(self, session: str, subject: str, *, tenant: str | None = None) -> None:
        """Note that the subject logged out."""
        self._note(SessionClosed, session, subject, tenant)

    def _note(self, kind: type[Activity], session: str, subject: str, tenant: str | None, **fields: object) -> None:
        self._enter(self._add, kind, session, subject, tenant, self._clock(), fields)

    def _enter(self, note: Callable[..., None], *args: object) -> None:
        """Go on in the loop's thread: at once, where this is it."""
        if self._loop is None or threading.get_ident() == self._thread:
            self._attempt(note, *args)
            return
        try:
            self._loop.call_soon_threadsafe(self._attempt, note, *args)
        except RuntimeError:
            self._drop("dropped", "activity is dropped: the service's event loop is closed")

    # What follows runs in the loop's thread only.

    def _attempt(self, note: Callable[..., None], *args: object) -> None:
        try:
            note(*args)
        except Exception:  # whatever is wrong with an argument: a request must not fail for it
            self._drop("malformed", "activity was dropped: an argument is of a wrong type")

    def _woken(self) -> None:
        if self._pump is not None:
            self._pump.wake()

    def _touch(
        self,
        session: str,
        subject: str,
        tenant: str | None,
        now: float,
        hold_ms: int | None,
        session_age_ms: int | None,
        device: str | None,
        network: str | None,
    ) -> None:
        known = self._coalescer.knows(session, subject, tenant)
        if hold_ms is not None or (
            not known and (session_age_ms is not None or device is not None or network is not None)
        ):
            fields = {"hold_ms": hold_ms, "session_age_ms": session_age_ms, "device": device, "network": network}
            self._add(SessionTouched, session, subject, tenant, now, fields)
            return
        if not known and not _are_names(session, subject, tenant):
            self._drop("malformed", "a touch was dropped: its session is no reference, or a name no name")
            return
        dropped = self._coalescer.dropped
        if self._coalescer.touch(session, subject, tenant, now):
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
            self._drop("dropped", f"activity is dropped: {EVENTS_MAX} wait for the broker")
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

    def _drop(self, counter: Literal["malformed", "dropped"], message: str) -> None:
        """Count what is dropped, and say so without the value, which may be a secret."""
        count = getattr(self._counts, counter) + 1
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
