"""How services refuse ended sessions; see guard.py, and denials.py and freshness.py for the rules."""

from lapse.consumers.guard.decisions import ALLOWED, ALLOWED_STALE, DENIED_STALE, ON_STALE, Decision, Ended, OnStale
from lapse.consumers.guard.guard import Guard
from lapse.consumers.guard.hooks import Hook, OnEnded

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
]
