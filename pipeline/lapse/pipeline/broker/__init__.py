"""A broker on any machine: one that is named, Docker's, or Java's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lapse.pipeline.broker.local import (
        NOTHING_THERE,
        BrokerHandle,
        BrokerStatus,
        broker_status,
        find_or_start,
        start_broker,
        stop_broker,
    )

__all__ = [
    "NOTHING_THERE",
    "BrokerHandle",
    "BrokerStatus",
    "broker_status",
    "find_or_start",
    "start_broker",
    "stop_broker",
]


def __getattr__(name: str) -> Any:
    # The settings ask this package for one small file at every command's start; what starts brokers is loaded when it
    # is used.
    if name in __all__:
        from lapse.pipeline.broker import local

        return getattr(local, name)
    raise AttributeError(name)
