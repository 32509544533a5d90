"""How services report what their users do; see publisher.py and coalescer.py."""

from lapse.consumers.activity.publisher import ActivityPublisher, PublisherStats

__all__ = ["ActivityPublisher", "PublisherStats"]
