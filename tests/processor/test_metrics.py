"""Goal: operators see what the engines know, also after a restart and of the present owner only.

Method: the worker's registry, told the engines' numbers, is read as a scrape reads it.
"""

from __future__ import annotations

from prometheus_client import generate_latest

from lapse.pipeline.processor.metrics import EngineNumbers, Metrics


def scraped(metrics: Metrics) -> set[str]:
    lines = generate_latest(metrics.registry).decode().splitlines()
    return {line for line in lines if "partition=" in line or line.startswith("lapse_engine_total{")}


def test_the_clocks_state_is_told_of_each_owned_partition_and_of_no_other() -> None:
    """Without a step since the start, too: the offset is of the state, and was restored with it."""
    owned = {
        0: EngineNumbers(live_sessions=7, waiting=0, clock_offset_ms=-3_600_250, counters={"clamped": 2}),
        5: EngineNumbers(live_sessions=1, waiting=12, clock_offset_ms=0, counters={"clamped": 1}),
    }
    metrics = Metrics()
    metrics.watch_engines(lambda: owned)
    assert scraped(metrics) == {
        'lapse_live_sessions{partition="0"} 7.0',
        'lapse_live_sessions{partition="5"} 1.0',
        'lapse_records_waiting{partition="0"} 0.0',
        'lapse_records_waiting{partition="5"} 12.0',
        'lapse_clock_offset_seconds{partition="0"} -3600.25',
        'lapse_clock_offset_seconds{partition="5"} 0.0',
        'lapse_engine_total{what="clamped"} 3.0',
    }
    del owned[0]
    assert not [line for line in scraped(metrics) if 'partition="0"' in line]
