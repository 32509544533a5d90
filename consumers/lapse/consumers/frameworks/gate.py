"""May this request pass, and is it activity? What the middlewares of all frameworks do before the application runs."""

import time
from typing import Any, Final

from lapse.consumers.activity import ActivityPublisher, SyncActivityPublisher
from lapse.consumers.frameworks.identity import ActiveSession, Identity
from lapse.consumers.guard import Decision, Guard, OnStale, SyncGuard
from lapse.schemas import session_reference

__all__ = ["BACKGROUND", "Gate"]

BACKGROUND: Final = "x-lapse-background"
"""A request with this header and the value 1 is checked, and is no touch: polling."""


_AMBIGUOUS: Final = Decision(allowed=False)


class Gate:
    """Asks the guard and tells the publisher.

    Args:
        guard, publisher: the asynchronous ones, or those for threads. Without a publisher something else tells touches.
        key: of session references, the estate's, if it has one.
    """

    def __init__(
        self,
        guard: Guard | SyncGuard,
        publisher: ActivityPublisher | SyncActivityPublisher | None = None,
        key: bytes | None = None,
    ) -> None:
        self.guard = guard
        self.publisher = publisher
        self.key = key

    def check(self, identity: Identity, on_stale: OnStale | None = None) -> ActiveSession:
        """Return the session of a request; it may pass if `decision.allowed`."""
        reference = session_reference(identity.session_id, self.key)
        subject, tenant, started_at = identity.subject, identity.tenant, identity.started_at
        if identity.ambiguous:
            return ActiveSession(reference, subject, tenant, started_at, _AMBIGUOUS)
        decision = self.guard.check(reference, subject=subject, tenant=tenant, started_at=started_at, on_stale=on_stale)
        return ActiveSession(reference, subject, tenant, started_at, decision)

    def touch(self, session: ActiveSession) -> None:
        """Tell that the session's subject did something."""
        if self.publisher is None:
            return
        # A touch may overtake its session's start, which another service reports. With its age a fresh login that is
        # adopted passes under the cutoff of an older revocation; without it, it would be taken for a session of before.
        # The start is an instant of the application's wall clock, so that clock tells the age.
        age_ms = None if session.started_at is None else max(0, int(time.time() * 1000) - session.started_at)
        self.publisher.touched(session.reference, session.subject, tenant=session.tenant, session_age_ms=age_ms)

    def started(self, identity: Identity, *, policy: str | None = None, **fields: Any) -> str:
        """Tell that a subject logged in, and return the session's reference; fields are those of the publisher."""
        reference = session_reference(identity.session_id, self.key)
        if self.publisher is not None:
            self.publisher.started(reference, identity.subject, tenant=identity.tenant, policy=policy, **fields)
        return reference

    def closed(self, identity: Identity) -> str:
        """Tell that a subject logged out, and return the session's reference."""
        reference = session_reference(identity.session_id, self.key)
        if self.publisher is not None:
            self.publisher.closed(reference, identity.subject, tenant=identity.tenant)
        return reference
