"""Is every answer right that one thread gets while another one writes what it rests on?

Who asks is put between any two bytecodes of the one that writes, and the other way round, by tracing: what real threads
meet once a week is met in each run. Then real threads, switched as often as Python will.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from types import FrameType
from typing import Any

import pytest

from lapse.consumers import session_reference
from lapse.consumers.guard.buckets import BUCKET_MS
from lapse.consumers.guard.denials import EVERYONE, SESSION_LIFE_MAX_MS, Denials, Scope
from lapse.consumers.guard.packed import ROWS_MAX
from lapse.consumers.testing import MemoryFeed
from lapse.schemas import Cause, ending_id

SESSION = session_reference("a")


@contextmanager
def _between_bytecodes(do: Callable[[], None]) -> Iterator[None]:
    """Do something between any two bytecodes that the guard runs in this thread."""

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if "/consumers/guard/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            sys.settrace(None)
            do()
            sys.settrace(trace)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def _at_each_bytecode(begin: Callable[[], tuple[Callable[[], None], Callable[[], object]]]) -> int:
    """Begin anew for each bytecode of `run`, and there do `step`, once; return how many there were.

    Args:
        begin: returns (run, step).
    """
    for place in count():
        run, step = begin()
        passed = [0]

        def at_its_place(place: int = place, step: Callable[[], object] = step, passed: list[int] = passed) -> None:
            passed[0] += 1
            if passed[0] == place + 1:
                step()

        with _between_bytecodes(at_its_place):
            run()
        if passed[0] <= place:
            return place
    raise AssertionError


@dataclass(frozen=True)
class _Case:
    """A step of the writer.

    Attributes:
        before: the orders it finds, id and at.
        refused_to: what started up to here is refused before the step, and after it.
    """

    before: tuple[tuple[str, int], ...]
    step: Callable[[Denials, Scope], object]
    refused_to: int | None


CASES = {
    "the first order": _Case((), lambda one, scope: one.cut(scope, "r", 100), None),
    "a later order": _Case((("r", 100),), lambda one, scope: one.cut(scope, "s", 200), 100),
    "an earlier order": _Case((("s", 200),), lambda one, scope: one.cut(scope, "r", 100), 200),
    "one in the middle": _Case((("r", 1), ("t", 300)), lambda one, scope: one.cut(scope, "s", 200), 300),
    "the same, earlier": _Case((("r", 100),), lambda one, scope: one.cut(scope, "r", 50), 50),
    "the last, earlier": _Case((("r", 10), ("s", 100)), lambda one, scope: one.cut(scope, "s", 50), 50),
    "the first, earlier": _Case((("r", 10), ("s", 100)), lambda one, scope: one.cut(scope, "r", 5), 100),
    "one is over": _Case((("r", 0), ("s", 900_000)), lambda one, _: one.forget(_life_after(0)), 900_000),
    "all are over": _Case((("r", 0), ("s", 1)), lambda one, _: one.forget(_life_after(1)), None),
}
STARTS = (-1, 0, 1, 5, 7, 10, 50, 70, 100, 150, 200, 300, 900_000, 900_001)


def _life_after(at: int) -> int:
    """Return an instant at which an order is over and freed."""
    return at + SESSION_LIFE_MAX_MS + 2 * BUCKET_MS


@pytest.fixture(params=[EVERYONE, ("acme", None), ("acme", "u")], ids=["everyone", "tenant", "subject"])
def scope(request: pytest.FixtureRequest) -> Scope:
    named: Scope = request.param
    return named


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> _Case:
    return CASES[request.param]


def _denials(case: _Case, scope: Scope) -> Denials:
    denials = Denials()
    for revocation, at in case.before:
        denials.cut(scope, revocation, at)
    return denials


def _ask(denials: Denials, case: _Case, started_at: int) -> None:
    denial = denials.covering("u", "acme", started_at)
    if denial is None:
        assert case.refused_to is None or started_at > case.refused_to
    else:
        assert not denial.allowed
        assert denial.revocation in ("r", "s", "t")
        assert denial.due_at is not None
        assert denial.due_at >= started_at


def test_who_asks_between_any_two_bytecodes_of_a_revocation_is_told_right(case: _Case, scope: Scope) -> None:
    denials = _denials(case, scope)
    asked = [0]

    def ask() -> None:
        asked[0] += 1
        for started_at in STARTS:
            _ask(denials, case, started_at)

    with _between_bytecodes(ask):
        case.step(denials, scope)
    assert asked[0] > 30


@pytest.mark.parametrize("started_at", [0, 70, 900_000])
def test_a_revocation_between_any_two_bytecodes_of_a_check_is_answered_right(
    case: _Case, scope: Scope, started_at: int
) -> None:
    def begin() -> tuple[Callable[[], None], Callable[[], object]]:
        denials = _denials(case, scope)
        return lambda: _ask(denials, case, started_at), lambda: case.step(denials, scope)

    assert _at_each_bytecode(begin) > 30


def test_who_asks_between_any_two_bytecodes_of_endings_finds_each_whole() -> None:
    feed = MemoryFeed()
    guard = feed.guard()
    denials, now = guard.intake.denials, feed.clock.now_at // BUCKET_MS * BUCKET_MS
    told: dict[str, int] = {}  # deny_until of what was joined, 0 of what is being joined; the last at the end

    def ask() -> None:
        for session in list(told)[-2:]:
            decision = guard.check(session)
            if decision.allowed:
                assert not told[session]
                continue
            assert decision.due_at == now - int(session)
            assert decision.ending == ending_id(session)
            assert decision.deny_until is not None
            assert decision.deny_until >= told[session]

    def join(number: int, deny_until: int) -> None:
        session = f"{number:022d}"
        told[session] = told.pop(session, 0)
        denials.join_ending(session, Cause.IDLE, now - number, None, deny_until)
        told[session] = deny_until

    with _between_bytecodes(ask):
        for number in range(ROWS_MAX + 3):
            join(number, now + 10 * BUCKET_MS)
        join(0, now + 10 * BUCKET_MS + 1)  # prolonged within its minute
        join(1_000, 2**62)  # too far for a block
        join(1_000, 2**62 + 1)
        join(0, now + 20 * BUCKET_MS)  # prolonged into a later minute
        denials.forget(now + 11 * BUCKET_MS)
    assert denials.entries == 2
    assert guard.checks > 10_000


def test_what_is_learned_during_a_check_makes_an_answer_from_before_no_fresher() -> None:
    """The guard is stale; the ending and the watermark that makes it fresh come while it is asked."""

    def begin() -> tuple[Callable[[], None], Callable[[], None]]:
        feed = MemoryFeed()
        guard = feed.guard(on_stale="deny")
        feed.processor_runs = False
        feed.advance(10_000)

        def recover() -> None:
            feed.end(SESSION)
            feed.processor_runs = True
            feed.advance(1_000)
            assert guard.fresh

        def ask() -> None:
            assert not guard.check(SESSION).allowed

        return ask, recover

    assert _at_each_bytecode(begin) > 20


def test_threads_ask_while_others_orders_are_read_from_every_partition() -> None:
    feed = MemoryFeed(partitions=4)
    guard = feed.guard()
    denials = guard.intake.denials
    faults: list[BaseException] = []
    done = threading.Event()
    feed.revoke(everyone=True, id="kept")
    newest = feed.clock.now_at

    def ask() -> None:
        try:
            while not done.is_set():
                for started_at in (0, newest - 50, newest):
                    assert not guard.check(SESSION, subject="u", tenant="acme", started_at=started_at)
        except BaseException as fault:
            faults.append(fault)

    askers = [threading.Thread(target=ask) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for asker in askers:
            asker.start()
        for number in range(1_000):
            for at in (newest + 3, newest - 20, newest - 40):  # an order has an append time in each partition
                denials.cut((EVERYONE, ("acme", None), ("acme", "u"))[number % 3], f"r-{number}", at)
    finally:
        done.set()
        for asker in askers:
            asker.join()
        sys.setswitchinterval(interval)
    assert not faults
