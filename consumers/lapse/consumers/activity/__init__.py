"""How services report what their users do; see publisher.py, threaded.py and coalescer.py."""

from lapse.consumers.activity.publisher import ActivityPublisher, PublisherStats
from lapse.consumers.activity.threaded import SyncActivityPublisher

__all__ = ["ActivityPublisher", "PublisherStats", "SyncActivityPublisher"]
