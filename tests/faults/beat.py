"""For how long was a partition silent? Measured to some 50 ms, where watermarks and ticks come once a second.

A record that nobody can read goes into each partition every BEAT_S, and its owner answers each with a dead letter as
soon as it applies it, whatever else it may wait for. So the time between two dead letters of a partition is the time
in which nothing that went in came out. The verifier does not see them: they concern no session.
"""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Final

from confluent_kafka import Producer

from lapse.pipeline.settings import Settings

from tests.integration._raw import RawReader

__all__ = ["BEAT_S", "Beat"]

BEAT_S: Final = 0.05
_RECORD: Final = b'{"type":"beat"}'


class Beat:
    """Writes until it is stopped; afterwards it tells of the silences."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._write, name="beat")
        self._letters = RawReader(settings.kafka, settings.prefix, "dead-letters")

    def __enter__(self) -> Beat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()
        self._letters.close()

    def silences(self, since: int, until: int) -> dict[int, int]:
        """Return the longest silence of each partition in this stretch of time, ms."""
        answers: dict[int, list[int]] = {number: [since] for number in range(self._settings.partitions)}
        for letter in self._letters.to_end():
            if since <= letter.stamp <= until:
                answers[letter.json["partition"]].append(letter.stamp)
        return {
            number: max(after - before for before, after in pairwise([*sorted(stamps), until]))
            for number, stamps in answers.items()
        }

    def _write(self) -> None:
        producer = Producer({"bootstrap.servers": self._settings.kafka, "linger.ms": 0, "log_level": 0})
        topic = f"{self._settings.prefix}activity"
        while not self._enough.wait(BEAT_S):
            for number in range(self._settings.partitions):
                producer.produce(topic, _RECORD, partition=number)
            producer.poll(0)
        producer.flush(30)
