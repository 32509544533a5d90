"""Which limits hold for this class of sessions?

Sessions that logged in alike (same tenant, service, policy name, attributes and token life) form a class; a class is
interned once and the session table keeps its number. So a policy change derives the limits of a few classes anew, not
of a million sessions, and a session's row needs no attributes.

The rules (DESIGN.md section 3, "Policies"):

* The base is the policy named at the start, or `default` for an unknown name; without a name only what matches, or
  `default` where nothing matches.
* Every policy whose `match` matches is added. Of all of them the strictest value of each limit wins; null is no limit.
* An ending reports the named policy, `default` for an unknown name, else the first match by name, else `default`.
* `default` always exists; until it is set it is built in, with version null.

Source: DESIGN.md sections 3 and 5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from lapse.schemas import DEFAULT_POLICY, Policy, PolicyMatch

__all__ = ["Limits", "PolicyBook", "SessionClass", "SessionClasses"]

TOKEN_LIFE_DEFAULT_MS = 24 * 3_600_000
"""For how long a denial is kept where neither an absolute limit nor a token life says (DESIGN.md section 3)."""


class SessionClass(NamedTuple):
    """What the limits of a session depend on, as it logged in."""

    tenant: str | None
    service: str
    policy: str | None = None
    attributes: tuple[tuple[str, str], ...] = ()
    token_life_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits in force for a class; durations in ms, None for no limit."""

    policy: str
    version: int | None
    idle_ms: int | None
    absolute_ms: int | None
    warn_before_ms: int | None
    hold_max_ms: int | None
    token_life_ms: int


def _matches(match: PolicyMatch | None, kind: SessionClass) -> bool:
    if match is None or match.is_empty:
        return False
    if match.tenant is not None and kind.tenant not in match.tenant:
        return False
    if match.service is not None and kind.service not in match.service:
        return False
    attributes = dict(kind.attributes)
    return all(attributes.get(name) in values for name, values in (match.attributes or {}).items())


def _strictest(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)


class PolicyBook:
    """The policies in force in one partition, by name."""

    def __init__(self) -> None:
        self._policies: dict[str, tuple[int | None, Policy]] = {"default": (None, DEFAULT_POLICY)}

    def adopt(self, version: int, policy: Policy) -> bool:
        """Put a policy in force; return False when its version is not above the one in force for its name."""
        current = self._policies.get(policy.name)
        if current is not None and current[0] is not None and version <= current[0]:
            return False
        self._policies[policy.name] = (version, policy)
        return True

    @property
    def version(self) -> int | None:
        """The highest version in force; None where only the built-in `default` is."""
        return max((version for version, _ in self._policies.values() if version is not None), default=None)

    def passes_over(self, version: int, policy: Policy) -> bool:
        """Return whether this is neither what is in force for its name nor would be adopted, as no log of policies has.

        What a worker that knew fewer limits has saved is compared by those that it knew.
        """
        current, known = self._policies.get(policy.name, (None, None))
        if current is None or known is None or version > current:
            return False
        return version < current or any(
            getattr(policy, limit) != getattr(known, limit) for limit in known.model_fields_set
        )

    def knows(self, name: str) -> bool:
        """Return whether a policy of this name is in force."""
        return name in self._policies

    def limits(self, kind: SessionClass) -> Limits:
        """Return the limits of a class; see the module's rules."""
        matching = sorted(name for name, (_, policy) in self._policies.items() if _matches(policy.match, kind))
        if kind.policy is not None:
            reported = kind.policy if kind.policy in self._policies else "default"
        else:
            reported = matching[0] if matching else "default"
        version = self._policies[reported][0]
        chosen = [self._policies[name][1] for name in {reported, *matching}]
        absolute_ms = _strictest(policy.absolute_ms for policy in chosen)
        lives = [kind.token_life_ms, _strictest(policy.token_life_ms for policy in chosen)]
        return Limits(
            policy=reported,
            version=version,
            idle_ms=_strictest(policy.idle_ms for policy in chosen),
            absolute_ms=absolute_ms,
            warn_before_ms=_strictest(policy.warn_before_ms for policy in chosen),
            hold_max_ms=_strictest(policy.hold_max_ms for policy in chosen),
            # A denial that ends too early lets an old token in: of two token lives the longer counts.
            token_life_ms=max((life for life in lives if life is not None), default=TOKEN_LIFE_DEFAULT_MS),
        )

    def save(self) -> list[Any]:
        """Return the state for a checkpoint: [[version, policy], ...] without the built-in one."""
        return [
            [version, policy.model_dump(mode="json")]
            for version, policy in self._policies.values()
            if version is not None
        ]

    def load(self, state: list[Any]) -> None:
        """Take the state of a checkpoint back."""
        for version, policy in state:
            self.adopt(version, Policy.model_validate(policy))


class SessionClasses:
    """The classes in use, numbered, with their limits; a class is dropped with its last session."""

    __slots__ = ("_book", "_free", "_numbers", "_uses", "kinds", "limits")

    def __init__(self, book: PolicyBook) -> None:
        self._book = book
        self._numbers: dict[SessionClass, int] = {}
        self._uses: list[int] = []
        self._free: list[int] = []
        self.kinds: list[SessionClass] = []
        self.limits: list[Limits] = []

    def take(self, kind: SessionClass, sessions: int = 1) -> int:
        """Return the number of a class for so many more sessions of it."""
        number = self._numbers.get(kind)
        if number is None:
            limits = self._book.limits(kind)
            if self._free:
                number = self._free.pop()
                self.kinds[number], self.limits[number], self._uses[number] = kind, limits, 0
            else:
                number = len(self.kinds)
                self.kinds.append(kind)
                self.limits.append(limits)
                self._uses.append(0)
            self._numbers[kind] = number
        self._uses[number] += sessions
        return number

    def has_room(self, kind: SessionClass, most: int) -> bool:
        """Return whether a session of this class may come, with at most so many classes in use."""
        return len(self._numbers) < most or kind in self._numbers

    def give_back(self, number: int) -> None:
        """Say that one session of the class is gone."""
        self._uses[number] -= 1
        if not self._uses[number]:
            del self._numbers[self.kinds[number]]
            self._free.append(number)

    def derive(self) -> dict[int, Limits]:
        """Derive every class's limits anew; return by number the former ones of each whose limits are others now."""
        changed = {}
        for kind, number in self._numbers.items():
            limits = self._book.limits(kind)
            if limits != self.limits[number]:
                changed[number] = self.limits[number]
                self.limits[number] = limits
        return changed
