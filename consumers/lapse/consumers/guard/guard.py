"""May this session go on? The guard of one service.

`check` answers in memory, from what the feed has told; it never waits and makes no object for a session that is
allowed. Everything else here is composition: denials (what is refused), freshness (how old that knowledge is), hooks
(who is told), a feed (where records come from) and a reporter (what operators see).
"""

import asyncio
import importlib.metadata
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from lapse.consumers.clock import monotonic_ms
from lapse.consumers.guard.decisions import ALLOWED, ALLOWED_STALE, DENIED_STALE, ON_STALE, Decision, Ended, OnStale
from lapse.consumers.guard.denials import SESSION_LIFE_MAX_MS, SHARD, Denials
from lapse.consumers.guard.feed import Feed, KafkaFeed
from lapse.consumers.guard.freshness import Freshness
from lapse.consumers.guard.hooks import Hook, Hooks, OnEnded
from lapse.consumers.guard.intake import Intake
from lapse.consumers.guard.packed import Block, Refused
from lapse.consumers.guard.reports import LAST_REPORT_TIMEOUT_S, Reporter, percentile
from lapse.consumers.producer import WRITE_ERRORS, Producer
from lapse.schemas import NAME_LENGTH_MAX, Cause, ConfigError, GuardStatus, PropagationMs, TopicNames

__all__ = ["Guard"]

_log = logging.getLogger("lapse.consumers")

REFERENCE_LENGTH: Final = 22

STALE_AFTER_MIN_MS: Final = 3_000
"""Watermarks and the feed's proofs come once a second: below three of them a guard would flap."""

_WATERMARK_WAIT_S: Final = 3.0
"""How long a start waits for watermarks once everything is read: they come once a second while a processor runs."""


class Guard:
    """Refuses ended sessions; `async with` starts and stops it.

    Args:
        bootstrap_servers: of Kafka; None only with a feed of your own.
        service: this service's name, in the guard's reports.
        instance: this process's name; by default host and process id.
        prefix: of the topics.
        stale_after_ms: knowledge of this age is stale. 3,000 to 3,600,000.
        on_stale: what a stale guard does with sessions it knows no ending of.
        session_life_max_ms: the longest session life of the estate, LAPSE_SESSION_LIFE_MAX_MS.
        ready_timeout_s: how long the start waits for the topics to be read.
        report: whether to write to lapse.enforcement (and lapse.dead-letters).
        client: further settings of aiokafka's clients, such as security_protocol and ssl_context.
        feed: where records come from; by default the broker.
        clock: monotonic ms.

    Attributes:
        checks, refused, allowed_while_stale: counted since it was made.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        bootstrap_servers: str | Sequence[str] | None = None,
        *,
        service: str,
        instance: str | None = None,
        prefix: str = "lapse.",
        stale_after_ms: int = 10_000,
        on_stale: OnStale = "allow",
        session_life_max_ms: int = SESSION_LIFE_MAX_MS,
        ready_timeout_s: float = 10.0,
        report: bool = True,
        client: Mapping[str, Any] | None = None,
        feed: Feed | None = None,
        clock: Callable[[], float] = monotonic_ms,
    ) -> None:
        if not STALE_AFTER_MIN_MS <= stale_after_ms <= 3_600_000:
            raise ConfigError(f"stale_after_ms is {stale_after_ms}: 3,000 to 3,600,000 is allowed")
        if on_stale not in ON_STALE:
            raise ConfigError(f"on_stale is {on_stale!r}: allow or deny")
        if not 1 <= len(service) <= NAME_LENGTH_MAX:
            raise ConfigError(f"service is the name of this service: 1 to {NAME_LENGTH_MAX} characters")
        if instance is not None and not 1 <= len(instance) <= NAME_LENGTH_MAX:
            raise ConfigError(f"instance is the name of this process: 1 to {NAME_LENGTH_MAX} characters")
        if session_life_max_ms < 1:
            raise ConfigError(f"session_life_max_ms is {session_life_max_ms}: at least 1 is needed")
        if bootstrap_servers is None and feed is None:
            raise ConfigError("bootstrap_servers is missing: where is Kafka?")
        self.service = service
        self.instance = instance or f"{socket.gethostname()}-{os.getpid()}"[-NAME_LENGTH_MAX:]
        self.checks = 0
        self.refused = 0
        self.allowed_while_stale = 0
        self._on_stale: OnStale = on_stale
        self._stale_after_ms = stale_after_ms
        self._clock = clock
        self._topics = TopicNames(prefix)
        self._denials = Denials(session_life_max_ms)
        self._freshness = Freshness(stale_after_ms, clock())
        self._hooks = Hooks()
        self.intake: Final = Intake(self._topics, self._denials, self._freshness, self._hooks)
        self._shards = self._denials.shards
        self._cutoffs = self._denials.cutoffs
        self._ready_timeout_s = ready_timeout_s
        self._settings = {**(client or {}), "bootstrap_servers": bootstrap_servers}
        self._client_id = f"lapse-guard-{service}"
        self._feed = feed if feed is not None else KafkaFeed(self._settings, self._topics, self._client_id, clock)
        self._reports = report and bootstrap_servers is not None
        self._producer: Producer | None = None
        self._reporting: asyncio.Task[None] | None = None
        self._version = importlib.metadata.version("lapse")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start, and return when the guard is fresh.

        When that takes too long (no broker: ready_timeout_s; no processor: three seconds after all is read) it
        returns all the same, the guard stale, and says so in the log: the service starts, on_stale decides.
        """
        await self._feed.start(self.intake)
        if self._reports:
            written = (self._topics.enforcement, self._topics.dead_letters)
            self._producer = Producer(self._settings, self._client_id, written)
            reporter = Reporter(self._producer, self._topics, self.intake, self.status, self._clock)
            self._reporting = asyncio.create_task(reporter.run(), name="lapse-guard-reports")
        try:
            fresh = await self.wait_until_fresh(self._ready_timeout_s)
        except BaseException:  # cancelled: nobody else would end what reads
            await self.stop()
            raise
        if not fresh:
            _log.warning("the guard of %s starts stale (%s): %s", self.service, self._on_stale, self.why_stale)

    async def stop(self) -> None:
        """Stop reading. `check` goes on answering, soon stale."""
        await self._feed.stop()
        reporting, self._reporting = self._reporting, None
        if reporting is not None:
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)
        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                async with asyncio.timeout(LAST_REPORT_TIMEOUT_S):
                    reporter = Reporter(producer, self._topics, self.intake, self.status, self._clock)
                    await reporter.report_status(stopping=True)
            except WRITE_ERRORS as error:
                _log.info("the guard's last status was not written: %s", error)
            finally:
                await producer.close()
        await self._hooks.close()

    async def wait_until_fresh(self, timeout_s: float) -> bool:
        """Return True as soon as the guard is fresh, or False when timeout_s is over or no watermark comes."""
        give_up_at = time.monotonic() + timeout_s
        caught_up = False
        while not self.fresh:
            if self._freshness.caught_up and not caught_up:
                caught_up = True
                give_up_at = min(give_up_at, time.monotonic() + _WATERMARK_WAIT_S)
            if time.monotonic() >= give_up_at:
                return False
            await asyncio.sleep(0.005)
        return True

    def check(
        self,
        session: str,
        *,
        subject: str | None = None,
        tenant: str | None = None,
        started_at: int | None = None,
        on_stale: OnStale | None = None,
    ) -> Decision:
        """Return whether the session may go on.

        Args:
            session: its reference (`session_reference(session_id)`), never the session id.
            subject, tenant: whose it is; with started_at they let revocations of a subject or tenant act at once.
            started_at: when it started, epoch ms, if the service knows.
            on_stale: overrides the guard's own.

        Raises:
            ValueError: `session` is no reference. A raw session id would never be found, and pass.
        """
        self.checks += 1
        # Before the look-up: what another thread learns after it does not make this answer any fresher.
        fresh_until = self._freshness.fresh_until
        denial = self._shards[hash(session) & SHARD].get(session)
        if denial is None and started_at is not None and self._cutoffs:
            denial = self._denials.covering(subject, tenant, started_at)
        if denial is not None:
            self.refused += 1
            return Refused(denial, session) if isinstance(denial, Block) else denial
        if len(session) != REFERENCE_LENGTH:
            raise ValueError("check takes a session's reference: session_reference(session_id)")
        if self._clock() < fresh_until:
            return ALLOWED
        if (on_stale or self._on_stale) == "allow":
            self.allowed_while_stale += 1
            return ALLOWED_STALE
        self.refused += 1  # also by a word that is neither, which a function of the application's may return
        return DENIED_STALE

    def on_ended(
        self,
        callback: OnEnded,
        session: str | None = None,
        *,
        subject: str | None = None,
        tenant: str | None = None,
        started_at: int | None = None,
    ) -> Hook:
        """Call back once when the session ends, or once for each session that ends from now on.

        Args:
            callback: takes an Ended; sync, or async (it then runs in a task of its own). In the loop's thread.
            session: its reference; if it is refused already the callback is called before this returns. None: all.
            subject, tenant, started_at: as for `check`.

        Returns:
            the registration; `cancel()` ends it.
        """
        hook = self._hooks.add(callback, session, subject, tenant, started_at)
        if session is not None:
            denial = self._denials.of(session)
            if denial is None and started_at is not None:
                denial = self._denials.covering(subject, tenant, started_at)
            if denial is not None:
                self._hooks.call((hook,), _ended_of(session, subject, tenant, denial))
        return hook

    @property
    def fresh(self) -> bool:
        """Return whether the guard knows enough to let sessions pass: else on_stale decides."""
        return self._clock() < self._freshness.fresh_until

    @property
    def stale_ms(self) -> int:
        """Return how old the guard's knowledge is."""
        return self._freshness.stale_ms(self._clock())

    @property
    def why_stale(self) -> str | None:
        """Return why the guard is stale, as a sentence, or None where it is fresh."""
        if self.fresh:
            return None
        return self._freshness.blind or "no recent watermark: is a processor (`lapse run`) running?"

    @property
    def entries(self) -> int:
        """Return how many denials and cutoffs are kept."""
        return self._denials.entries

    def status(self) -> GuardStatus:
        """Return what the guard reports once a second."""
        ordered = sorted(self.intake.propagations_ms)
        propagation = None
        if ordered:
            propagation = PropagationMs(
                p50=round(percentile(ordered, 0.50), 3), p99=round(percentile(ordered, 0.99), 3)
            )
        return GuardStatus(
            service=self.service,
            instance=self.instance,
            version=self._version,
            applied={
                source: [position - 1 for position in positions] for source, positions in self.intake.positions.items()
            },
            stale_ms=self.stale_ms,
            entries=self.entries,
            checks=self.checks,
            refused=self.refused,
            allowed_while_stale=self.allowed_while_stale,
            propagation_ms=propagation,
            stale_after_ms=self._stale_after_ms,
            on_stale=self._on_stale,
        )


def _ended_of(session: str, subject: str | None, tenant: str | None, denial: Decision) -> Ended:
    return Ended(
        session=session,
        subject=subject,
        tenant=tenant,
        cause=denial.cause or Cause.REVOKED,  # a denial that is kept always has both
        due_at=denial.due_at or 0,
        ending=denial.ending,
        revocation=denial.revocation,
    )
