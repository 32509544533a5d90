"""Which sessions are refused, and is what is kept packed the same?

Properties: a plain oracle that keeps every fact in a list must agree, whatever the order in which facts come and
however often; and no fact ever takes a denial back.
"""

import copy
import pickle
import random
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from lapse.consumers.guard.buckets import BUCKET_MS
from lapse.consumers.guard.decisions import Decision
from lapse.consumers.guard.denials import BLOCKS_FORGOTTEN_MAX, EVERYONE, Denials, Scope
from lapse.consumers.guard.packed import ROWS_MAX
from lapse.schemas import Cause, SessionEnded, ending_id

from tests.consumers.support import ended

LIFE_MS = 10 * BUCKET_MS
SESSIONS = tuple(letter * 22 for letter in "abc")
SUBJECTS = ("u-1", "u-2")
TENANTS = ("acme", None)


def _ended(session: str, *, cause: Cause = Cause.IDLE, due_at: int = 100, deny_until: int = 1_000) -> SessionEnded:
    return ended(session, cause=cause, due_at=due_at, deny_until=deny_until)


@dataclass(frozen=True)
class _Ending:
    session: str
    deny_until: int

    def join(self, denials: Denials) -> None:
        denials.end(_ended(self.session, deny_until=self.deny_until))


@dataclass(frozen=True)
class _Revoked:
    session: str
    id: str
    at: int

    def join(self, denials: Denials) -> None:
        denials.revoke_session(self.session, self.id, self.at)


@dataclass(frozen=True)
class _Cut:
    scope: Scope
    id: str
    at: int

    def join(self, denials: Denials) -> None:
        denials.cut(self.scope, self.id, self.at)


_Fact = _Ending | _Revoked | _Cut

_instants = st.integers(0, 5 * BUCKET_MS)
_facts = st.one_of(
    st.builds(_Ending, st.sampled_from(SESSIONS), _instants),
    st.builds(_Revoked, st.sampled_from(SESSIONS), st.sampled_from(["r-1", "r-2", "r-3"]), _instants),
    st.builds(
        _Cut,
        st.sampled_from([EVERYONE, ("acme", None), *((t, s) for t in TENANTS for s in SUBJECTS)]),
        st.sampled_from(["c-1", "c-2", "c-3"]),
        _instants,
    ),
)


def _ask(denials: Denials, session: str, subject: str, tenant: str | None, started_at: int) -> Decision | None:
    found = denials.of(session)
    return denials.covering(subject, tenant, started_at) if found is None else found


def _until(denials: Denials, session: str) -> int:
    denial = denials.of(session)
    assert denial is not None
    return denial.deny_until or 0


def _oracle(
    facts: list[_Fact], session: str, subject: str, tenant: str | None, started_at: int
) -> tuple[str | None, str | None, int | None] | None:
    """Return (ending, revocation, deny_until) of the denial, by going through all facts; None: allowed."""
    endings = [fact for fact in facts if isinstance(fact, _Ending) and fact.session == session]
    revoked = [fact for fact in facts if isinstance(fact, _Revoked) and fact.session == session]
    if endings or revoked:
        until = max([fact.deny_until for fact in endings] + [fact.at + LIFE_MS for fact in revoked])
        if endings:
            return ending_id(session), None, until
        return None, min((fact.at, fact.id) for fact in revoked)[1], until
    first_at: dict[tuple[Scope, str], int] = {}
    for fact in facts:
        if isinstance(fact, _Cut):
            key = (fact.scope, fact.id)
            first_at[key] = min(first_at.get(key, fact.at), fact.at)
    covering = [
        (at, id)
        for (scope, id), at in first_at.items()
        if scope in (EVERYONE, (tenant, None), (tenant, subject)) and started_at <= at
    ]
    if not covering:
        return None
    at, id = min(covering)
    return None, id, at + LIFE_MS


@settings(deadline=None)
@given(st.lists(_facts, max_size=12), st.randoms(use_true_random=False), _instants)
def test_it_answers_as_the_oracle_in_any_order_and_however_often_facts_come(
    facts: list[_Fact], chance: random.Random, started_at: int
) -> None:
    orders = [list(facts), facts + facts, [*facts, *reversed(facts)]]
    shuffled = list(facts)
    chance.shuffle(shuffled)
    for order in (*orders, shuffled):
        denials = Denials(LIFE_MS)
        for fact in order:
            fact.join(denials)
        for session in SESSIONS:
            for subject in SUBJECTS:
                for tenant in TENANTS:
                    found = _ask(denials, session, subject, tenant, started_at)
                    said = None if found is None else (found.ending, found.revocation, found.deny_until)
                    assert said == _oracle(facts, session, subject, tenant, started_at)


@settings(deadline=None)
@given(st.lists(_facts, max_size=12))
def test_no_fact_takes_a_sessions_denial_back(facts: list[_Fact]) -> None:
    denials = Denials(LIFE_MS)
    until: dict[str, int] = {}
    for fact in facts:
        fact.join(denials)
        for session, before in until.items():
            assert _until(denials, session) >= before
        until = {session: _until(denials, session) for session in denials.sessions}


@settings(deadline=None)
@given(st.lists(_facts, max_size=12), st.lists(st.integers(0, 20 * BUCKET_MS), min_size=1, max_size=5))
def test_denials_last_until_deny_until_and_are_freed_within_a_minute(facts: list[_Fact], times: list[int]) -> None:
    denials = Denials(LIFE_MS)
    for fact in facts:
        fact.join(denials)
    kept = {session: _until(denials, session) for session in denials.sessions}
    cuts = {fact.scope: fact for fact in facts if isinstance(fact, _Cut)}
    for now in sorted(times):
        denials.forget(now)
        for session, deny_until in kept.items():
            if now < deny_until:
                assert session in denials.sessions
            if now >= deny_until + BUCKET_MS:
                assert session not in denials.sessions
        if now >= 6 * BUCKET_MS + LIFE_MS + BUCKET_MS:
            assert denials.entries == 0
        for scope, cut in cuts.items():
            if now < _first_at(facts, cut) + LIFE_MS:
                assert denials.order(scope, cut.id) is not None


def _first_at(facts: list[_Fact], cut: _Cut) -> int:
    return min(fact.at for fact in facts if isinstance(fact, _Cut) and (fact.scope, fact.id) == (cut.scope, cut.id))


def test_a_session_that_started_at_the_cutoff_is_refused_and_one_a_millisecond_later_passes() -> None:
    denials = Denials()
    denials.cut(("acme", "u-1"), "r-1", 500)
    assert denials.covering("u-1", "acme", 500) is not None
    assert denials.covering("u-1", "acme", 501) is None
    assert denials.covering("u-1", None, 500) is None  # another subject: it has no tenant


def test_of_one_revocation_id_the_earliest_at_counts_and_of_several_ids_the_latest() -> None:
    denials = Denials()
    denials.cut(("acme", None), "r-1", 500)
    denials.cut(("acme", None), "r-1", 400)
    denials.cut(("acme", None), "r-1", 600)
    assert denials.covering("anyone", "acme", 401) is None
    denials.cut(("acme", None), "r-2", 450)
    denial = denials.covering("anyone", "acme", 401)
    assert denial is not None
    assert denial.revocation == "r-2"


def test_of_cutoffs_that_cover_a_session_the_first_is_named_also_where_two_are_one_id_of_one_instant() -> None:
    denials = Denials()
    for scope in (EVERYONE, ("acme", None), ("acme", "u-1")):
        denials.cut(scope, "r-2", 500)
    denial = denials.covering("u-1", "acme", 500)
    assert denial is not None
    assert (denial.revocation, denial.due_at) == ("r-2", 500)
    denials.cut(("acme", "u-1"), "r-1", 500)
    denial = denials.covering("u-1", "acme", 500)
    assert denial is not None
    assert denial.revocation == "r-1"


def test_an_ending_says_more_than_the_revocation_before_it_and_is_no_second_ending() -> None:
    denials = Denials()
    assert denials.revoke_session(SESSIONS[0], "r-1", 50)
    assert not denials.end(_ended(SESSIONS[0], cause=Cause.REVOKED, due_at=60))
    denial = denials.of(SESSIONS[0])
    assert denial is not None
    assert (denial.due_at, denial.ending) == (60, ending_id(SESSIONS[0]))
    assert not denials.revoke_session(SESSIONS[0], "r-0", 10)
    assert denials.of(SESSIONS[0]) == denial


def _name(number: int) -> str:
    return f"{number:022d}"


def test_more_endings_than_a_block_has_rows_are_each_kept_with_their_own_instants() -> None:
    denials = Denials()
    count = 3 * ROWS_MAX + 1
    for number in range(count):
        cause = Cause.CLOSED if number % 3 else Cause.IDLE
        denials.end(_ended(_name(number), cause=cause, due_at=number, deny_until=5 * BUCKET_MS + number))
    assert denials.entries == count
    for number in range(count):
        denial = denials.of(_name(number))
        assert denial is not None
        assert not denial
        assert (denial.due_at, denial.deny_until, denial.stale) == (number, 5 * BUCKET_MS + number, False)
        assert denial.cause == (Cause.CLOSED if number % 3 else Cause.IDLE)


def test_an_ending_due_long_before_its_denial_is_over_is_kept_as_well() -> None:
    denials = Denials()
    denials.end(_ended(SESSIONS[0], due_at=-(2**62), deny_until=2**62))
    denial = denials.of(SESSIONS[0])
    assert denial is not None
    assert (denial.due_at, denial.deny_until, denial.ending) == (-(2**62), 2**62, ending_id(SESSIONS[0]))
    denials.end(_ended(SESSIONS[0], due_at=7, deny_until=2**62 + 1))
    denial = denials.of(SESSIONS[0])
    assert denial is not None
    assert (denial.due_at, denial.deny_until) == (-(2**62), 2**62 + 1)


def test_a_packed_denial_is_equal_to_a_plain_one_and_can_be_copied() -> None:
    denials = Denials()
    denials.end(_ended(SESSIONS[0], due_at=60, deny_until=1_000))
    denial = denials.of(SESSIONS[0])
    plain = Decision(False, Cause.IDLE, 60, ending_id(SESSIONS[0]), None, 1_000)
    assert denial == plain
    assert plain == denial
    assert hash(denial) == hash(plain)
    assert copy.copy(denial) == plain
    assert pickle.loads(pickle.dumps(denial)) == plain  # noqa: S301  # our own bytes
    assert repr(plain).removeprefix("Decision") in repr(denial)
    assert denial != Decision(False, Cause.IDLE, 61, ending_id(SESSIONS[0]), None, 1_000)


def test_very_many_that_are_over_at_once_are_freed_in_turns_and_refused_until_then() -> None:
    denials = Denials()
    count = (BLOCKS_FORGOTTEN_MAX + 1) * ROWS_MAX
    for number in range(count):
        denials.join_ending(_name(number), Cause.IDLE, 0, None, 1)
    denials.forget(2 * BUCKET_MS)
    assert denials.entries == ROWS_MAX
    assert denials.of(_name(count - 1)) is not None
    denials.forget(2 * BUCKET_MS)
    assert denials.entries == 0


def test_what_is_over_is_not_taken_in_again_but_counts_as_an_ending() -> None:
    denials = Denials()
    denials.forget(5 * BUCKET_MS)
    assert denials.end(_ended(SESSIONS[0], deny_until=5 * BUCKET_MS))
    assert denials.end(_ended(SESSIONS[1], deny_until=5 * BUCKET_MS + 1))
    assert denials.sessions == [SESSIONS[1]]
    denials.log_time_unknown()
    assert denials.end(_ended(SESSIONS[0], deny_until=5 * BUCKET_MS))
    assert denials.of(SESSIONS[0]) is not None
