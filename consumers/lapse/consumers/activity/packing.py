"""How do touches and events become records of one batch?

Touches of a partition travel packed, `[session, subject, tenant, age_ms, since_ms?, pause_ms?]`, at most
PACKED_ENTRIES_MAX and RECORD_BYTES_MAX a record. As `session.touched` with the subject's key travels a single one, and
one that tells its session's start, for which an entry has no place. Ages are taken when the bytes are made, and bytes
are made anew for each attempt.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import orjson

from lapse.consumers.activity.coalescer import Touch
from lapse.schemas import (
    AGE_MAX_MS,
    PACKED_ENTRIES_MAX,
    RECORD_BYTES_MAX,
    SessionClosed,
    SessionElevated,
    SessionRefreshed,
    SessionStarted,
    SessionTouched,
    encode,
    subject_key,
)

__all__ = ["Activity", "Event", "pack", "record_of_event"]

Activity = SessionStarted | SessionTouched | SessionRefreshed | SessionElevated | SessionClosed

_ENVELOPE_BYTES = 2_048
"""What a packed record takes beside its entries: fixed text and the service's name (256 code points, at most 6 bytes
each when escaped)."""


@dataclass(frozen=True, slots=True)
class Event:
    """An activity that is told as it is, not joined with others; `at` is monotonic ms, the model's age is not used."""

    activity: Activity
    at: float

    @property
    def closes(self) -> bool:
        return isinstance(self.activity, SessionClosed)

    def has_expired(self, now: float) -> bool:
        """Return whether it says that its session was last active longer ago than the wire can say.

        Told at the oldest age it would pass for a younger one, and keep a session that is over. A start is told all the
        same, for nothing else may tell of its session; a refresh and a close keep nobody.
        """
        if not isinstance(self.activity, SessionTouched | SessionElevated):
            return False
        hold_ms = self.activity.hold_ms if isinstance(self.activity, SessionTouched) else None
        return now - self.at - max(0, hold_ms or 0) > AGE_MAX_MS


def record_of_event(event: Event, now: float) -> tuple[bytes, bytes]:
    """Return (key, value) of the event's record at `now`."""
    age_ms = max(0, min(int(now - event.at), AGE_MAX_MS))
    activity = event.activity.model_copy(update={"age_ms": age_ms})
    return subject_key(activity.subject, activity.tenant), encode(activity)


def pack(
    touches: Sequence[Touch], *, service: str, touch_interval_ms: int, clock: Callable[[], float]
) -> Iterator[tuple[bytes | None, bytes, Sequence[Touch]]]:
    """Yield (key, value, the touches in it) until all touches are in a record, in order.

    Args:
        touches: of one partition; those that tell their session's start come first.
        clock: monotonic ms; read once for each record.
    """
    start = 0
    while start < len(touches):
        now = clock()
        chunk = touches[start : start + (PACKED_ENTRIES_MAX if touches[start].started is None else 1)]
        if len(chunk) == 1:
            yield (
                subject_key(chunk[0].track.subject, chunk[0].track.tenant),
                _single(chunk[0], service, touch_interval_ms, now),
                chunk,
            )
        else:
            entries = [_entry(touch, touch_interval_ms, now) for touch in chunk]
            value = orjson.dumps({"type": "touches", "service": service, "touches": entries})
            if len(value) > RECORD_BYTES_MAX:
                chunk, value = _cut(chunk, entries, service)
            yield None, value, chunk
        start += len(chunk)


def _entry(touch: Touch, touch_interval_ms: int, now: float) -> list[str | int | None]:
    track = touch.track
    entry: list[str | int | None] = [track.session, track.subject, track.tenant, touch.age_ms(now)]
    span = touch.stands_for(now, touch_interval_ms)
    if span is not None:
        entry += span
    return entry


def _cut(chunk: Sequence[Touch], entries: list[list[str | int | None]], service: str) -> tuple[Sequence[Touch], bytes]:
    """Return as many touches as fit in one record (names are long here), and its value."""
    size = _ENVELOPE_BYTES
    fitting = 0
    for entry in entries:
        size += len(orjson.dumps(entry)) + 1
        if size > RECORD_BYTES_MAX:
            break
        fitting += 1  # at least once: an entry has at most about 5 KB
    return chunk[:fitting], orjson.dumps({"type": "touches", "service": service, "touches": entries[:fitting]})


def _single(touch: Touch, service: str, touch_interval_ms: int, now: float) -> bytes:
    """Return what `encode` makes of the touch's SessionTouched, in a third of the time: its names have been checked."""
    track = touch.track
    fields = {"session": track.session, "subject": track.subject, "service": service, "age_ms": touch.age_ms(now)}
    if track.tenant is not None:
        fields["tenant"] = track.tenant
    span = touch.stands_for(now, touch_interval_ms)
    if span is not None:
        fields["since_ms"], fields["pause_ms"] = span
    if touch.started is not None:
        fields["session_age_ms"] = touch.session_age_ms
    return orjson.dumps({"type": "session.touched", **fields})
