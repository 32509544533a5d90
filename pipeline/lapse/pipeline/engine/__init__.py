"""When do sessions end? The rules, pure: records go in, effects come out as data.

Nothing in here knows of asyncio, Kafka, Faust, a clock, randomness or the environment. `PartitionEngine` (core.py) is
the whole of it; one engine holds one partition.
"""

from lapse.pipeline.engine.core import LogRecord, PartitionEngine
from lapse.pipeline.engine.effects import Checkpoint, Effects, Forward
from lapse.pipeline.engine.log_clock import ClockAlarm
from lapse.pipeline.engine.settings import EngineSettings

__all__ = ["Checkpoint", "ClockAlarm", "Effects", "EngineSettings", "Forward", "LogRecord", "PartitionEngine"]
