"""When do the demo's sessions end by time? Soon, so that a minute shows all of it."""

from __future__ import annotations

from typing import Final

from lapse.schemas import Policy

__all__ = ["ABSOLUTE_MS", "IDLE_MS", "POLICY"]

IDLE_MS: Final = 4_000
ABSOLUTE_MS: Final = 20_000

POLICY: Final = Policy(name="default", idle_ms=IDLE_MS, absolute_ms=ABSOLUTE_MS, by="demo", note="so that much happens")
"""`default`, so that a session that a service touches before its start has arrived has the same limits."""
