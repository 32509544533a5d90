"""How services refuse ended sessions; see guard.py, threaded.py, and denials.py and freshness.py for the rules."""

from lapse.consumers.guard.decisions import ALLOWED, ALLOWED_STALE, DENIED_STALE, ON_STALE, Decision, Ended, OnStale
from lapse.consumers.guard.guard import Guard
from lapse.consumers.guard.hooks import Hook, OnEnded
from lapse.consumers.guard.threaded import SyncGuard, SyncHook

__all__ = [
    "ALLOWED",
    "ALLOWED_STALE",
    "DENIED_STALE",
    "ON_STALE",
    "Decision",
    "Ended",
    "Guard",
    "Hook",
    "OnEnded",
    "OnStale",
    "SyncGuard",
    "SyncHook",
]
