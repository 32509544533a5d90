"""Do the endings agree with what people really did, as the load wrote it down (load.py)? All clocks are this machine's.

- Nobody who was in use ended as idle: what was done well before an ending's due is known to it.
- Nobody reached an absolute limit, logged out or was revoked before they did, or who did not at all.
- Whoever logged out, or was revoked with an acknowledgment, has ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from lapse.schemas import Cause, SessionEnded

from tests.faults.load import SHORT, STEADY, TOUCH_INTERVAL_MS

__all__ = ["KNOWN_WITHIN_MS", "TOLERANCE_MS", "held_against_life"]

# What a touch may lose on its way without a fault of ours, for it cools for the publisher's interval; and by how much
# log time and this process's clock may differ.
TOLERANCE_MS: Final = TOUCH_INTERVAL_MS + 250
# Cooling in the publisher, the way into the log, and the pauses of a process on a machine that does much else. Within
# it a touch may come after its session was over by the log, and no rule is broken. Far below the idle timeouts: what
# is held against life is a use in the time between.
KNOWN_WITHIN_MS: Final = 5_000

_ABSOLUTE_MS: Final = {policy.name: policy.absolute_ms for policy in (SHORT, STEADY)}


def held_against_life(truth: Path, endings: Mapping[str, SessionEnded]) -> tuple[dict[str, Any], list[str]]:
    """Return figures, and what is wrong; `endings` by session."""
    summary, *people = [json.loads(line) for line in truth.read_text().splitlines()]
    problems: list[str] = []
    for person in people:
        session = person["session"]
        ended = endings.get(session)
        if ended is not None:
            problems += [
                f"life: {session} ({person['policy']}) ended as {ended.cause}, due {ended.due_at}, {what}"
                for what in _wrong(person, ended, summary["stopped_at"])
            ]
        elif person["closed_at"] is not None:
            problems.append(f"life: {session} logged out at {person['closed_at']}, and has not ended")
    problems += [
        f"life: {session} was revoked, acknowledged, and has not ended"
        for session in summary["revoked"]
        if session not in endings
    ]
    if not summary["flushed"] or summary["dropped"]:
        problems.append(f"life: the publisher has not got rid of everything: {summary['dropped']} dropped")
    steady = sum(1 for one in people if one["policy"] == STEADY.name and one["session"] in endings)
    return {"people": len(people), "touches": summary["touches"], "steady_ended": steady}, problems


def _wrong(person: dict[str, Any], ended: SessionEnded, stopped_at: int) -> Iterator[str]:
    """Tell what of an ending this person's life contradicts."""
    if ended.cause is Cause.IDLE:
        known_before = ended.due_at - KNOWN_WITHIN_MS
        used_at = max((at for at in [person["started_at"], *person["touched_at"]] if at < known_before), default=0)
        if ended.last_seen_at < used_at - TOLERANCE_MS:
            yield f"last seen at {ended.last_seen_at}, but was used at {used_at}"
        if person["policy"] == STEADY.name and ended.due_at < stopped_at:
            yield "and was steadily used"
        return
    limit = _ABSOLUTE_MS[person["policy"]]
    since = {
        Cause.ABSOLUTE: None if limit is None else person["started_at"] + limit,
        Cause.CLOSED: person["closed_at"],
        Cause.REVOKED: person["revoked_at"],
    }[ended.cause]
    if since is None:
        yield "and never was"
    elif ended.due_at < since - TOLERANCE_MS:
        yield f"but was only at {since}"
