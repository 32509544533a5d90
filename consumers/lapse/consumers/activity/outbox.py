"""What goes into a partition's next batch, and in which order?

The order of a batch, so that the log reads as it happened:

    1. started, elevated, refreshed, and touches that tell a hold, a device or a network
    2. joined touches (coalescer.py): those that tell their session's start, then the others, packed
    3. closed

Steps 2 and 3 wait for the next batch while something of the step before is left. No IO here: the caller gives a batch
to fill (aiokafka's BatchBuilder fits) and tells what became of it.
"""

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from lapse.consumers.activity.coalescer import Coalescer, Touch, Track
from lapse.consumers.activity.packing import Event, pack, record_of_event
from lapse.schemas import partition_of

__all__ = ["EVENTS_MAX", "Batch", "Load", "Outbox"]

EVENTS_MAX: Final = 50_000
"""Events kept while they cannot be written: at about 1.5 KB each (model, names, attributes) 75 MB."""

LOAD_TOUCHES_MAX: Final = 5_000
"""Touches of one batch: 10 packed records of about 24 KB, half of the producer's BATCH_BYTES_MAX, made in about 5 ms of
the service's loop."""

LOAD_STARTS_MAX: Final = 1_000
"""Touches of one batch that tell their session's start, each in a record of its own: about 230 KB, made in about 9 ms.
All that a coalescer keeps (SESSIONS_MAX) takes 2.3 s so, measured beside other work: below the 4 s that pump.py has."""


class Batch(Protocol):
    """What records are appended to; None means that the batch is full and the record is not in it."""

    def append(self, *, timestamp: int | None, key: bytes | None, value: bytes | None) -> object | None: ...


@dataclass(slots=True)
class Load:
    """What is in a batch."""

    partition: int
    events: list[Event] = field(default_factory=list)
    touches: list[Touch] = field(default_factory=list)
    records: int = 0


class Outbox:
    """Events and ready tracks by partition.

    Args:
        clock: monotonic ms.

    Attributes:
        expired: events that had expired when they were to be sent; they are not.
    """

    def __init__(
        self, coalescer: Coalescer, *, service: str, touch_interval_ms: int, clock: Callable[[], float]
    ) -> None:
        self._coalescer = coalescer
        self._service = service
        self._interval_ms = touch_interval_ms
        self._clock = clock
        self._partitions = 0
        self._unplaced: deque[Event] = deque()
        self._openings: defaultdict[int, deque[Event]] = defaultdict(deque)
        self._closings: defaultdict[int, deque[Event]] = defaultdict(deque)
        self._tracks: defaultdict[int, deque[Track]] = defaultdict(deque)
        self._events_flying = 0
        self.expired = 0

    @property
    def events_kept(self) -> int:
        """Return how many events are noted and do not stand in the log yet."""
        queues = (*self._openings.values(), *self._closings.values())
        return self._events_flying + len(self._unplaced) + sum(map(len, queues))

    def add(self, event: Event) -> None:
        """Take an event, to be placed and sent as it is."""
        self._unplaced.append(event)

    def place(self, partitions: int) -> list[int]:
        """Give everything that is ready its partition, and return the partitions that have something to send.

        Args:
            partitions: of the activity topic. Should it have changed, everything is placed anew.
        """
        tracks = self._coalescer.release(self._clock())
        if partitions != self._partitions:
            tracks = [track for queue in self._tracks.values() for track in queue] + tracks
            self._tracks.clear()
            # Openings before closings keeps each session's order; between sessions there is none to keep.
            self._unplaced.extendleft(
                reversed([event for queues in (self._openings, self._closings) for q in queues.values() for event in q])
            )
            self._openings.clear()
            self._closings.clear()
            self._partitions = partitions
        for track in tracks:
            self._tracks[partition_of(track.subject, track.tenant, partitions)].append(track)
        while self._unplaced:
            event = self._unplaced.popleft()
            queues = self._closings if event.closes else self._openings
            queues[partition_of(event.activity.subject, event.activity.tenant, partitions)].append(event)
        return [p for p in range(partitions) if self._openings[p] or self._tracks[p] or self._closings[p]]

    def load(self, partition: int, batch: Batch) -> Load:
        """Fill the batch with what the partition has to send, and return what it took."""
        load = Load(partition)
        if self._load_events(self._openings[partition], batch, load) and self._load_touches(partition, batch, load):
            self._load_events(self._closings[partition], batch, load)
        self._events_flying += len(load.events)
        return load

    def landed(self, load: Load) -> None:
        """Note that the batch stands in the log."""
        self._events_flying -= len(load.events)
        self._coalescer.landed(load.touches)

    def lost(self, load: Load) -> None:
        """Take the content of a batch back that may not stand in the log."""
        self._events_flying -= len(load.events)
        for event in reversed(load.events):
            (self._closings if event.closes else self._openings)[load.partition].appendleft(event)
        self._coalescer.lost(load.touches)

    def _load_events(self, queue: deque[Event], batch: Batch, load: Load) -> bool:
        """Load the queue's events; return whether all are in."""
        while queue:
            now = self._clock()
            if queue[0].has_expired(now):
                queue.popleft()
                self.expired += 1
                continue
            key, value = record_of_event(queue[0], now)
            if batch.append(timestamp=None, key=key, value=value) is None:
                return False
            load.events.append(queue.popleft())
            load.records += 1
        return True

    def _load_touches(self, partition: int, batch: Batch, load: Load) -> bool:
        """Load the partition's ready touches; return whether all are in."""
        queue = self._tracks[partition]
        tracks: list[Track] = []
        starts = 0
        while queue and len(tracks) < LOAD_TOUCHES_MAX and starts < LOAD_STARTS_MAX:
            starts += queue[0].has_start_to_tell
            tracks.append(queue.popleft())
        touches = self._coalescer.take(tracks, self._clock())
        touches.sort(key=lambda touch: touch.started is None)
        packed = pack(touches, service=self._service, touch_interval_ms=self._interval_ms, clock=self._clock)
        for key, value, inside in packed:
            if batch.append(timestamp=None, key=key, value=value) is None:
                self._coalescer.lost(touches[len(load.touches) :])
                return False
            load.touches += inside
            load.records += 1
        return not queue
