"""Which touches are worth a record, and when?

Pure: no clock, no IO. Monotonic milliseconds are passed in; what to send is taken out, and what became of it is told.

Theory of operation. Of each session the coalescer keeps one track. A touch of a session without a track is *ready* at
once. What is taken is *flying* until it is told to have been appended (`landed`) or not (`lost`). A session that has
landed *cools* until its last told instant plus the touch interval; touches in the meantime join into one span (first,
latest, longest pause between them), which becomes ready when the session has cooled. A session that cooled without a
touch is forgotten.

    (no track) --touch--> READY --take--> FLYING --landed--> COOLING --cooled, no touch--> (no track)
                            ^                |                  |
                            +-----lost-------+                  +--cooled, touched--> READY

What is *hurried*, because the session is about to be closed or the publisher to stop, does not cool: its span is ready
at once, or, where an earlier one is flying, as soon as that has landed.

Why cooling counts from the last instant *told*, and not from when the record was sent. Let L be the newest instant
that the log has been told, and t a touch after it. The log must hear of t before L + idle. t is taken at L + interval
at the latest, and stands in the log `delay` later; so `interval + delay < idle` is enough, whatever the pattern (and
`delay` below the rules' grace_ms, which a touch just before due needs whether it is joined with others or not). With
an interval counted from the sending it is not: touches at 0, 0.1 and 5.05 s, interval 5 s. At 5 s the log is told of
0.1; at 10 s of 5.05. An idle timeout of 6 s would have ended the session at 6.1 s. The price: a session that is
touched densely costs one record an interval, and no pattern costs more than two an interval on average
(records k and k + 2 are more than an interval apart, for each tells of an instant after the sending of the one before).

A span whose latest touch is within an interval of the last told instant is in time whatever happens, so its age says
all. Any other span of more than one touch (the log was away, or a batch was in flight when a silent session came back)
says what it stands for: `since_ms` and `pause_ms`; else a touch past due would hide the one in time that it joined.

A session's start, where the service knows it, is kept on the track and told with the first span that is taken after it
is known, and no more once that has landed. A track that is forgotten takes this with it: after each silence the start
is told anew, since the log may have been made anew meanwhile, or its owner had no room for the session.
"""

import heapq
from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple

from lapse.schemas import AGE_MAX_MS, DURATION_MAX_MS

__all__ = ["SESSIONS_MAX", "Coalescer", "Touch", "Track"]

SESSIONS_MAX: Final = 250_000
"""Tracks kept. One costs about 570 bytes, by tracemalloc with names of 30 characters (object 136, reference 71, subject
80, five instants 120, entry of the heap 124, of dictionary and queue 40): 143 MB at the limit. Within one interval of
5 s it is 50,000 different sessions a second; in an outage, when nothing is forgotten, every session of a service that
large. A further session's touch is dropped and counted; those already known are never given up for it."""


class _State(Enum):
    READY = 0
    FLYING = 1
    COOLING = 2


class Track:
    """What the coalescer knows of one session."""

    __slots__ = (
        "first",
        "hurried",
        "landing",
        "latest",
        "pause",
        "session",
        "start_told",
        "started",
        "state",
        "subject",
        "tenant",
        "told",
        "waiting",
    )

    def __init__(self, session: str, subject: str, tenant: str | None) -> None:
        self.session = session
        self.subject = subject
        self.tenant = tenant
        self.state = _State.READY
        self.waiting = False  # whether first, latest and pause hold a span that is not taken yet
        self.hurried = False  # whether that span is ready as soon as the one that is flying has landed
        self.first = 0.0
        self.latest = 0.0
        self.pause = 0.0
        self.told: float | None = None  # the newest instant that landed
        self.started: float | None = None  # when the session started, if that is known
        self.start_told = False  # whether that has landed
        self.landing = 0  # the number of its last landing: an entry of the heap with another one is void

    @property
    def has_start_to_tell(self) -> bool:
        """Return whether the next span that is taken is to tell the session's start."""
        return self.started is not None and not self.start_told


class Touch(NamedTuple):
    """A span that was taken: all touches of one session from `first` to `latest`, monotonic ms.

    `told` is the newest instant that the log had been told before it, `started` the session's start where this span is
    to tell it.
    """

    track: Track
    first: float
    latest: float
    pause: float
    told: float | None
    started: float | None

    @property
    def session_age_ms(self) -> int | None:
        """Return how old the session was at the latest touch, where this span is to tell it."""
        if self.started is None:
            return None
        return max(0, min(round(self.latest - self.started), DURATION_MAX_MS))

    def age_ms(self, now: float) -> int:
        """Return the age of the latest touch at `now`, 0 to AGE_MAX_MS."""
        return _age(now, self.latest)

    def stands_for(self, now: float, touch_interval_ms: float) -> tuple[int, int] | None:
        """Return (since_ms, pause_ms) at `now`, or None where they say nothing that the age does not say."""
        if self.first == self.latest:
            return None
        if self.told is not None and self.latest - self.told <= touch_interval_ms:
            return None
        return _age(now, self.first), min(int(self.pause), AGE_MAX_MS)


def _age(now: float, instant: float) -> int:
    return max(0, min(int(now - instant), AGE_MAX_MS))


class Coalescer:
    """Joins touches at the edge; see the module.

    Args:
        touch_interval_ms: at least 1.
        sessions_max: tracks kept at most.

    Attributes:
        unsent: sessions that are ready or flying.
        dropped: touches of sessions beyond sessions_max.
        expired: spans whose latest touch was older than the wire can say when they were taken.
    """

    def __init__(self, touch_interval_ms: int, sessions_max: int = SESSIONS_MAX) -> None:
        self._interval = touch_interval_ms
        self._sessions_max = sessions_max
        self._tracks: dict[str, Track] = {}
        self._ready: list[Track] = []
        self._cooling: list[tuple[float, int, Track]] = []  # a heap; the number breaks ties, for tracks do not compare
        self._landings = 0
        self.unsent = 0
        self.dropped = 0
        self.expired = 0

    def __len__(self) -> int:
        return len(self._tracks)

    def knows(self, session: str, subject: str, tenant: str | None) -> bool:
        """Return whether the session has a track by these names; then they have been checked before."""
        track = self._tracks.get(session)
        return track is not None and track.subject == subject and track.tenant == tenant

    def touch(self, session: str, subject: str, tenant: str | None, now: float, started: float | None = None) -> bool:
        """Note a touch at `now`; return whether the session became ready by it.

        Of a session that comes under changing names (a fault of the service) the last ones count, of changing starts
        the first: they differ by what the service's wall clock was set meanwhile.
        """
        track = self._tracks.get(session)
        if track is not None:
            track.subject = subject
            track.tenant = tenant
            if track.started is None:
                track.started = started
            if track.waiting:
                if now > track.latest:
                    pause = now - track.latest
                    if pause > track.pause:
                        track.pause = pause
                    track.latest = now
                return False
        else:
            if len(self._tracks) >= self._sessions_max:
                self.dropped += 1
                return False
            track = self._tracks[session] = Track(session, subject, tenant)
            track.started = started
            self._ready.append(track)
            self.unsent += 1
        track.waiting = True
        track.first = track.latest = now
        track.pause = 0.0
        return track.state is _State.READY

    def told(self, session: str, subject: str, tenant: str | None, now: float) -> None:
        """Note that a record of its own, which counts as a touch at `now`, is on its way: the session cools from it."""
        track = self._tracks.get(session)
        if track is not None:
            # What is known goes its way: one record more, nothing less. But the span that waits counts it as well. The
            # record may be told first and look late without the span; the span would call a pause what was none.
            if track.waiting or track.state is _State.FLYING:
                self.touch(session, subject, tenant, now)
            return
        if len(self._tracks) >= self._sessions_max:
            return
        track = self._tracks[session] = Track(session, subject, tenant)
        self._cool(track, now)

    def hurry_all(self) -> None:
        """Make all waiting spans ready now, because the publisher is about to stop."""
        for session in self._tracks:
            self.hurry(session)

    def hurry(self, session: str) -> None:
        """Make the session's waiting span ready now, because something that must come after it is about to be sent."""
        track = self._tracks.get(session)
        if track is None or not track.waiting:
            return
        if track.state is _State.COOLING:
            self._be_ready(track)
        elif track.state is _State.FLYING:
            track.hurried = True

    def next_at(self) -> float | None:
        """Return when the next session will have cooled, or None; what is ready is ready now."""
        return self._cooling[0][0] if self._cooling else None

    def release(self, now: float) -> list[Track]:
        """Return the tracks that have become ready, each once; they are to be given back to `take`."""
        cooling = self._cooling
        while cooling and cooling[0][0] <= now:
            _, landing, track = heapq.heappop(cooling)
            if landing != track.landing:
                continue  # the session was hurried: it has been sent since, or is about to be
            if track.waiting:
                self._be_ready(track)
            else:
                del self._tracks[track.session]
        ready, self._ready = self._ready, []
        return ready

    def take(self, tracks: Sequence[Track], now: float) -> list[Touch]:
        """Return the spans of ready tracks to be sent now; touches that come later start a new span."""
        touches = []
        for track in tracks:
            if now - track.latest > AGE_MAX_MS:
                # The engine would clamp the age and take the touch for a younger one than it was.
                self.expired += 1
                self.unsent -= 1
                del self._tracks[track.session]
                continue
            track.state = _State.FLYING
            track.waiting = track.hurried = False
            started = track.started if track.has_start_to_tell else None
            touches.append(Touch(track, track.first, track.latest, track.pause, track.told, started))
        return touches

    def landed(self, touches: Sequence[Touch]) -> None:
        """Note that the spans stand in the log: their sessions cool, but for those that were hurried meanwhile."""
        for touch in touches:
            track = touch.track
            self.unsent -= 1
            track.start_told = track.start_told or touch.started is not None
            told = touch.latest if track.told is None else max(track.told, touch.latest)
            if track.hurried:
                track.told = told
                self._be_ready(track)
            else:
                self._cool(track, told)

    def lost(self, touches: Sequence[Touch]) -> None:
        """Note that the spans may not stand in the log: they join what has come since, and are ready again."""
        for track, first, latest, pause, *_ in touches:
            if track.waiting:
                track.pause = max(pause, track.first - latest, track.pause)
            else:
                track.waiting = True
                track.latest = latest
                track.pause = pause
            track.first = first
            track.state = _State.READY
            self._ready.append(track)

    def _be_ready(self, track: Track) -> None:
        track.state = _State.READY
        track.landing = 0
        self._ready.append(track)
        self.unsent += 1

    def _cool(self, track: Track, told: float) -> None:
        track.told = told
        track.state = _State.COOLING
        self._landings += 1
        track.landing = self._landings
        heapq.heappush(self._cooling, (told + self._interval, self._landings, track))
