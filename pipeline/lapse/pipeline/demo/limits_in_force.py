"""Which limits has a session, by the auditor's reading of the policies?

DESIGN.md section 3: a session has the policy that it names (`default` where that is unknown), and those that match
it; without a name only those that match, or `default` where none does. Of all of them the strictest value of each limit
wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from lapse.schemas import DEFAULT_POLICY, Policy

__all__ = ["Limits", "Login", "PoliciesInForce"]


class Limits(NamedTuple):
    """ms; None: no limit."""

    idle_ms: int | None
    absolute_ms: int | None
    hold_max_ms: int | None


_NO_LIMITS: Final = Limits(None, None, None)


@dataclass(slots=True)
class Login:
    """A session as the auditor knows it; instants are epoch ms of the log's scale.

    Attributes:
        adopted: whether it was first seen by a touch, so that its start may still be corrected.
        limits: as of the last change of its policies.
    """

    session: str
    subject: str
    tenant: str | None
    service: str
    started_at: int
    last_seen_at: int
    adopted: bool
    policy: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = _NO_LIMITS


class PoliciesInForce:
    """The policies of one partition, as they were copied into its log."""

    def __init__(self) -> None:
        self._by_name: dict[str, Policy] = {DEFAULT_POLICY.name: DEFAULT_POLICY}
        self._versions: dict[str, int] = {}

    def adopt(self, version: int, policy: Policy) -> bool:
        """Put a policy in force; return whether it is newer than what is."""
        if version <= self._versions.get(policy.name, -1):
            return False
        self._by_name[policy.name] = policy
        self._versions[policy.name] = version
        return True

    def limits(self, login: Login) -> Limits:
        """Return the session's limits as of now."""
        default = self._by_name[DEFAULT_POLICY.name]
        applying = [policy for policy in self._by_name.values() if _matches(policy, login)]
        if login.policy is not None:
            applying.append(self._by_name.get(login.policy, default))
        if not applying:
            applying.append(default)
        return Limits(
            _strictest(policy.idle_ms for policy in applying),
            _strictest(policy.absolute_ms for policy in applying),
            _strictest(policy.hold_max_ms for policy in applying),
        )


def _strictest(limits: Iterable[int | None]) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _matches(policy: Policy, login: Login) -> bool:
    match = policy.match
    if match is None or match.is_empty:
        return False
    return (
        (match.tenant is None or login.tenant in match.tenant)
        and (match.service is None or login.service in match.service)
        and all(login.attributes.get(name) in allowed for name, allowed in (match.attributes or {}).items())
    )
