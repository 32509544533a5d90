"""Is a login that started then revoked?

A revocation of a subject, a tenant or everyone ends the sessions that started at or before its instant `at`, and is
kept as a cutoff so that what arrives late ends too. A cutoff is kept for the longest session life from `at`; of one
id the earliest `at` counts, so that a repeated or reordered copy never widens it.

Several cutoffs may cover a start: the one with the smallest (at, id) is named, the first that would have ended it.

Source: DESIGN.md section 3, "A revocation".
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import heappop, heappush

__all__ = ["Cutoffs", "Scope"]

Scope = tuple[str, ...]
"""("everyone",), ("tenant", name), ("subject", name) or ("subject", name, tenant)."""


def scope_of(subject: str | None, tenant: str | None) -> Scope:
    """Return the scope of a revocation's target."""
    if subject is not None:
        return ("subject", subject) if tenant is None else ("subject", subject, tenant)
    return ("everyone",) if tenant is None else ("tenant", tenant)


class Cutoffs:
    """The cutoffs of one partition. Instants are epoch ms of the log's scale."""

    def __init__(self, kept_for_ms: int) -> None:
        self._kept_for_ms = kept_for_ms
        self._by_id: dict[str, tuple[int, Scope]] = {}
        self._by_scope: dict[Scope, list[tuple[int, str]]] = {}
        self._expiry: list[tuple[int, str]] = []
        self.dirty: set[str] = set()
        """Ids that changed since the last checkpoint, those that expired among them."""

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, revocation: str, scope: Scope, at: int) -> None:
        """Keep a cutoff; a repeated id keeps its earliest instant and its first scope."""
        known = self._by_id.get(revocation)
        if known is not None:
            if at >= known[0]:
                return
            scope = known[1]
            self._by_scope[scope].remove((known[0], revocation))
        self._by_id[revocation] = (at, scope)
        insort(self._by_scope.setdefault(scope, []), (at, revocation))
        heappush(self._expiry, (at + self._kept_for_ms, revocation))
        self.dirty.add(revocation)

    def covering(self, subject: str, tenant: str | None, started_at: int | None) -> tuple[int, str] | None:
        """Return the smallest (at, id) with at >= started_at in the login's scopes, or None.

        A start that is not known (None) is covered by any cutoff.
        """
        if not self._by_id:
            return None
        found = None
        scopes: list[Scope] = [("everyone",), scope_of(subject, tenant)]
        if tenant is not None:
            scopes.append(("tenant", tenant))
        for scope in scopes:
            kept = self._by_scope.get(scope)
            if not kept:
                continue
            first = 0 if started_at is None else bisect_left(kept, (started_at, ""))
            if first < len(kept) and (found is None or kept[first] < found):
                found = kept[first]
        return found

    @property
    def next_expiry_at(self) -> int | None:
        """The earliest instant at which a cutoff may be forgotten."""
        return self._expiry[0][0] if self._expiry else None

    def expire(self, stamp: int) -> None:
        """Forget the cutoffs whose time has come (stamp >= at + the time they are kept)."""
        while self._expiry and self._expiry[0][0] <= stamp:
            expires_at, revocation = heappop(self._expiry)
            known = self._by_id.get(revocation)
            if known is None or known[0] + self._kept_for_ms != expires_at:
                continue  # an entry of before its instant was lowered
            at, scope = self._by_id.pop(revocation)
            kept = self._by_scope[scope]
            kept.remove((at, revocation))
            if not kept:
                del self._by_scope[scope]
            self.dirty.add(revocation)

    def get(self, revocation: str) -> tuple[int, Scope] | None:
        """Return the (at, scope) of a kept cutoff, or None."""
        return self._by_id.get(revocation)

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_id)
