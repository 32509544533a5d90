"""What is a refused request told? An RFC 9457 problem (application/problem+json) with the cause."""

from typing import Final

import orjson

from lapse.consumers.guard import Decision

__all__ = ["CLOSE_CODE", "HEADERS", "STATUS", "problem", "reason"]

STATUS: Final = 401

CLOSE_CODE: Final = 4001
"""What a WebSocket of an ended session is closed with: of the range that is free for applications, and like 401."""

HEADERS: Final = (
    (b"content-type", b"application/problem+json"),
    (b"cache-control", b"no-store"),
    # RFC 9110, section 15.5.2: a 401 carries a challenge. No browser knows this scheme, so none opens a dialogue.
    (b"www-authenticate", b'Lapse realm="session"'),
)


def problem(decision: Decision) -> bytes:
    """Return the body for a refused request.

    `cause` is the ending's (idle, absolute, revoked, closed, displaced), or null where the guard is stale and refuses
    what it cannot verify, or the request carries several sessions.
    """
    ended = decision.cause is not None
    return orjson.dumps(
        {
            "type": "urn:lapse:session-ended" if ended else "urn:lapse:session-unverified",
            "title": "The session has ended" if ended else "The session cannot be verified at present",
            "status": STATUS,
            "detail": reason(decision),
            "cause": decision.cause,
            "due_at": decision.due_at,
            "ending": decision.ending,
        }
    )


def reason(decision: Decision) -> str:
    """Return why, in words; it fits in the 123 bytes of a WebSocket's close reason."""
    if decision.cause is None:
        return "session unverified: " + ("the guard is stale" if decision.stale else "the request carries several")
    return f"session ended: {decision.cause.value}"
