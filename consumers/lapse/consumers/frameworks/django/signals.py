"""What is told of a login and a logout? Django's signals say when."""

from typing import Any

from lapse.consumers.frameworks.django import sessions
from lapse.consumers.frameworks.django.settings import enforcement

__all__ = ["logged_in", "logged_out"]


def logged_in(*, request: Any, user: Any, **_: Any) -> None:
    """The signal user_logged_in."""
    if not hasattr(request, "session"):
        return
    lapse = enforcement()
    if lapse.identify is None:
        before = sessions.told(request)
        if before is not None:
            lapse.gate.closed(before)  # who logs in again in the same session has left the login before
        identity = sessions.begin(request, lapse, user)
    else:
        identity = lapse.identify(request)
    if identity is not None:
        lapse.gate.started(identity, policy=lapse.policy(request, user))


def logged_out(*, request: Any, **_: Any) -> None:
    """The signal user_logged_out; the session is still there."""
    if not hasattr(request, "session"):
        return
    lapse = enforcement()
    identity = sessions.told(request) if lapse.identify is None else lapse.identify(request)
    if identity is not None:
        lapse.gate.closed(identity)
