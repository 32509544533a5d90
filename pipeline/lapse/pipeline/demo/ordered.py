"""What did operators order, has it taken effect in a partition's log, and whom does it cover, as the auditor reads it?

The owner's copies are not trusted: one only says *where* in the log an order takes effect. What was ordered, and when,
is read from the topic it was written to. A copy without an original is no order, and each takes effect once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lapse.pipeline.demo.limits_in_force import Login
from lapse.schemas import Policy, Revocation

__all__ = ["OrderedPolicy", "OrderedRevocation", "Orders", "covers"]


class OrderedRevocation(NamedTuple):
    """A revocation as it stands in lapse.revocations, appended at `at` (the earliest of its id)."""

    at: int
    revocation: Revocation


class OrderedPolicy(NamedTuple):
    """A policy as it stands in lapse.policies, appended at `at`; `version` is its offset there."""

    at: int
    version: int
    policy: Policy


class Orders:
    """The orders for one partition: those that have not taken effect yet, and the revocations kept for late comers."""

    def __init__(self, revocations: Iterable[OrderedRevocation], policies: Iterable[OrderedPolicy]) -> None:
        # Without effect so far, in the order of their appends.
        self._revocations = {order.revocation.id: order for order in sorted(revocations, key=lambda order: order.at)}
        self._policies = {order.version: order for order in sorted(policies, key=lambda order: order.version)}
        self._cutoffs: dict[str, OrderedRevocation] = {}
        self._barred: dict[str, OrderedRevocation] = {}

    def take_revocation(self, id: str) -> OrderedRevocation | None:
        """Return the revocation that takes effect by its copy; None: it was never ordered, or has taken effect."""
        return self._revocations.pop(id, None)

    def take_policy(self, version: int) -> OrderedPolicy | None:
        """Return the policy that takes effect by its copy; None: it was never ordered, or has taken effect."""
        return self._policies.pop(version, None)

    def take_old_revocations(self, before: int) -> list[OrderedRevocation]:
        """Return those appended before an instant, which take effect without a copy."""
        return [self._revocations.pop(order.revocation.id) for order in self.uncopied(before)]

    def take_old_policies(self, before: int) -> list[OrderedPolicy]:
        """Return those appended before an instant, which take effect without a copy."""
        old = [order for order in self._policies.values() if order.at < before]
        return [self._policies.pop(order.version) for order in old]

    def uncopied(self, before: int) -> list[OrderedRevocation]:
        """Return the revocations appended before an instant that have taken no effect so far."""
        return [order for order in self._revocations.values() if order.at < before]

    def keep(self, order: OrderedRevocation) -> None:
        """Keep a revocation of a subject, a tenant or everyone for what comes late."""
        self._cutoffs[order.revocation.id] = order

    def bar(self, session: str, order: OrderedRevocation) -> None:
        """Keep the first revocation of a session that is not known, should it come."""
        self._barred[session] = min(self._barred.get(session, order), order, key=_first)

    def is_barred(self, session: str) -> bool:
        """Return whether a session was revoked before it was known."""
        return session in self._barred

    def ending(self, login: Login, *, start_is_known: bool) -> OrderedRevocation | None:
        """Return the kept revocation that ends a session whose start was just told, if there is one."""
        return self._barred.pop(login.session, None) or min(
            (
                order
                for order in self._cutoffs.values()
                if _in_scope(order.revocation, login) and (not start_is_known or login.started_at <= order.at)
            ),
            key=_first,
            default=None,
        )


def covers(order: OrderedRevocation, login: Login) -> bool:
    """Return whether a revocation ends a session that is live."""
    if order.revocation.session is not None:
        return order.revocation.session == login.session
    return _in_scope(order.revocation, login) and login.started_at <= order.at


def _first(order: OrderedRevocation) -> tuple[int, str]:
    return order.at, order.revocation.id


def _in_scope(revocation: Revocation, login: Login) -> bool:
    if revocation.everyone:
        return True
    if revocation.subject is not None:
        return (revocation.subject, revocation.tenant) == (login.subject, login.tenant)
    return revocation.tenant == login.tenant
