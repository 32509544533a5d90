"""The light side of Lapse: services tell what their users do, and refuse ended sessions.

    ActivityPublisher    tells started, touched, refreshed, elevated, closed
    Guard                answers "may this session go on?"
    SyncActivityPublisher, SyncGuard      the same for threaded and pre-forked services
    LapseMiddleware      does both for an ASGI application (lapse.consumers.frameworks.fastapi for FastAPI)

For tests without Kafka: lapse.consumers.testing.
"""

from lapse.consumers.activity import ActivityPublisher, PublisherStats, SyncActivityPublisher
from lapse.consumers.frameworks.asgi import ActiveSession, Identity, LapseMiddleware
from lapse.consumers.guard import Decision, Ended, Guard, Hook, OnStale, SyncGuard, SyncHook
from lapse.schemas import Cause, ConfigError, LapseError, is_session_reference, session_reference

__all__ = [
    "ActiveSession",
    "ActivityPublisher",
    "Cause",
    "ConfigError",
    "Decision",
    "Ended",
    "Guard",
    "Hook",
    "Identity",
    "LapseError",
    "LapseMiddleware",
    "OnStale",
    "PublisherStats",
    "SyncActivityPublisher",
    "SyncGuard",
    "SyncHook",
    "is_session_reference",
    "session_reference",
]
