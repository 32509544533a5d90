"""What is a proxy told? 200 with the session's reference, or 401 with a problem whose cause is also a header.

`X-Lapse-Cause` is the ending's cause (idle, absolute, revoked, closed, displaced), or one of three words of the
sidecar's own, which the body tells by its type (its `cause` is null then, as for every guard):

    unverified   the guard is stale and refuses, or there are no keys to verify a token by
    missing      the request carries no session, and must
    invalid      what it carries is no genuine login
"""

from typing import Final, Literal

import orjson
from starlette.responses import Response

from lapse.consumers.frameworks.problem import HEADERS, STATUS, problem
from lapse.consumers.guard import Decision

__all__ = ["CAUSE_HEADER", "OwnCause", "passed", "refused", "refused_by_sidecar"]

CAUSE_HEADER: Final = "x-lapse-cause"

OwnCause = Literal["unverified", "missing", "invalid"]

_TITLES: Final[dict[OwnCause, str]] = {
    "unverified": "The session cannot be verified at present",
    "missing": "There is no session",
    "invalid": "The login is not valid",
}
_REFUSAL: Final = {name.decode("ascii"): value.decode("ascii") for name, value in HEADERS}


def passed(reference: str | None, *, stale: bool = False) -> Response:
    """Return the answer that lets a request pass.

    Args:
        reference: of its session, if it has one: no credential, services may log it.
        stale: whether the guard only let it pass for want of knowledge.
    """
    headers = {"cache-control": "no-store"}
    if reference is not None:
        headers["x-lapse-session"] = reference
    if stale:
        headers["x-lapse-stale"] = "1"
    return Response(headers=headers)


def refused(decision: Decision) -> Response:
    """Return the answer for what the guard refused."""
    cause = "unverified" if decision.cause is None else decision.cause.value
    return Response(problem(decision), STATUS, {**_REFUSAL, CAUSE_HEADER: cause})


def refused_by_sidecar(cause: OwnCause, detail: str) -> Response:
    """Return the answer for what the guard was not even asked about."""
    body = orjson.dumps(
        {
            "type": f"urn:lapse:session-{cause}",
            "title": _TITLES[cause],
            "status": STATUS,
            "detail": detail,
            "cause": None,
            "due_at": None,
            "ending": None,
        }
    )
    return Response(body, STATUS, {**_REFUSAL, CAUSE_HEADER: cause})
