"""What is decided of a run before anything happens?

A plan is all of a run that was drawn (drawing.py): who logs in and acts when, what operators order, what breaks. It is
plain data, so that a failing run can be made smaller by leaving parts of it out (shrink.py). Instants and durations are
ms of true time, which no engine knows. What a plan does not say (how long an append takes, how many records a read
brings) is drawn while it runs, by each actor from a stream of its own, so that leaving out one part moves the others
little.

Faults come first (until `faults_until`), then everything heals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lapse.schemas import partition_of

__all__ = [
    "MARGIN_MS",
    "STEPS",
    "Act",
    "ClockStep",
    "Crash",
    "Fault",
    "Leave",
    "Limits",
    "Order",
    "Outage",
    "Person",
    "Plan",
    "PolicyChange",
    "Shuffle",
    "Stall",
]

MARGIN_MS = 1_000
"""No person acts so near to a limit that the time of publishing (200) or two leaders' skew would decide."""

STEPS = (
    "applied",  # after 1: sessions are over in memory, and nobody has been told
    "published",  # after 2: handed over, some of it acknowledged
    "cut",  # within 3: before what was published is acknowledged
    "acknowledged",  # between 3 and 4
    "written",  # within 4: the state is in the open transaction
    "committed",  # after 4: it is committed, and the worker has not heard so
    "restored",  # fenced and read back, nothing in use yet
    "claimed",  # an epoch is chosen, and not claimed yet
    "ticked",  # a tick stands in the log, its acknowledgement is lost
    "copied",  # a copy stands in the log, its position is not saved
)
"""Where a worker can die or be stalled; the numbers are those of pipeline/lapse/pipeline/processor/core.py."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a policy allows."""

    idle_ms: int
    absolute_ms: int
    warn_before_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Act:
    """One thing that a person did; `hold_ms`: a job that it began counts as activity for so long."""

    at: int
    kind: Literal["touch", "elevate", "refresh"] = "touch"
    service: int = 0
    hold_ms: int = 0

    @property
    def until(self) -> int:
        """Up to when the person counts as active by it."""
        return self.at + self.hold_ms


@dataclass(frozen=True, slots=True)
class Person:
    """One login and what came of it. `acts` are in order and after the login.

    Attributes:
        scattered: the service puts its records into the wrong partition.
    """

    session: str
    subject: str
    tenant: str | None
    login_at: int
    acts: tuple[Act, ...]
    closed_at: int | None
    scattered: bool = False

    @property
    def services(self) -> int:
        """How many services the person uses."""
        return len({0, *(act.service for act in self.acts)})


@dataclass(frozen=True, slots=True)
class Order:
    """A revocation by an operator; the narrowest of session, subject and tenant is meant, without any everyone."""

    at: int
    id: str
    session: str | None = None
    subject: str | None = None
    tenant: str | None = None
    misplaced: bool = False


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """The default policy is set anew."""

    at: int
    limits: Limits


@dataclass(frozen=True, slots=True)
class Crash:
    """From `at` on, a worker dies where it next comes to `step` (None: at once), and starts again after `absent_ms`."""

    at: int
    worker: int
    step: str | None
    absent_ms: int


@dataclass(frozen=True, slots=True)
class Stall:
    """From `at` on, a worker stands still for `for_ms` where it next comes to `step` (None: at once), then goes on."""

    at: int
    worker: int
    step: str | None
    for_ms: int


@dataclass(frozen=True, slots=True)
class Leave:
    """A worker stops for good order, with its last checkpoints, and starts again after `absent_ms`."""

    at: int
    worker: int
    absent_ms: int


@dataclass(frozen=True, slots=True)
class Shuffle:
    """The group spreads the partitions over the live workers in another way."""

    at: int


@dataclass(frozen=True, slots=True)
class Outage:
    """The log is away."""

    at: int
    until: int


@dataclass(frozen=True, slots=True)
class ClockStep:
    """A broker's clock is set."""

    at: int
    by: int
    broker: int


Fault = Crash | Stall | Leave | Shuffle | Outage | ClockStep


@dataclass(frozen=True, slots=True)
class Plan:
    """All that was drawn for a run; see the module.

    Attributes:
        skews: of the brokers' clocks.
        leaders: by topic ("activity", "revocations") and partition, the broker that leads.
    """

    seed: int
    clock: Literal["disciplined", "append"]
    partitions: int
    workers: int
    limits: Limits
    hold_max_ms: int
    touch_interval_ms: int
    skews: tuple[int, ...]
    leaders: dict[str, tuple[int, ...]]
    people: tuple[Person, ...]
    orders: tuple[Order, ...]
    policies: tuple[PolicyChange, ...]
    faults: tuple[Fault, ...]
    faults_until: int

    @property
    def outages(self) -> list[Outage]:
        """The times in which the log is away, in order."""
        return [fault for fault in self.faults if isinstance(fault, Outage)]

    @property
    def clock_steps(self) -> list[ClockStep]:
        """The steps of brokers' clocks, in order."""
        return [fault for fault in self.faults if isinstance(fault, ClockStep)]

    @property
    def all_limits(self) -> list[Limits]:
        """Every limit that is ever in force."""
        return [self.limits, *(change.limits for change in self.policies)]

    def home(self, person: Person) -> int:
        """Return the partition that a person belongs to."""
        return partition_of(person.subject, person.tenant, self.partitions)
