"""Goal: the index finds a subject's slots and no others. Method: hypothesis compares it with a dict of sets."""

import time
from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from lapse.pipeline.engine.subject_index import SubjectIndex

WHO = [(f"u-{number}", tenant) for number in range(4) for tenant in (None, "acme", "other")]


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(WHO)), max_size=120))
def test_it_finds_what_a_dict_of_sets_finds(toggles: list[tuple[int, tuple[str, str | None]]]) -> None:
    subjects, tenants = [""] * 31, list[str | None]([None] * 31)
    index, plain = SubjectIndex(subjects, tenants), defaultdict[tuple[str, str | None], set[int]](set)
    for slot, who in toggles:
        if subjects[slot]:
            index.remove(slot)
            plain[subjects[slot], tenants[slot]].discard(slot)
            subjects[slot] = ""
        else:
            subjects[slot], tenants[slot] = who
            index.add(slot)
            plain[who].add(slot)
        for one in WHO:
            found = index.of(*one)
            assert sorted(found) == sorted(plain[one])
            assert [index.has(*one, count) for count in (1, 2, 5)] == [len(found) >= count for count in (1, 2, 5)]


def test_it_grows_and_forgets_nothing() -> None:
    subjects = [f"u-{number // 2}" for number in range(5000)]
    tenants: list[str | None] = [None] * 5000
    index, bulk = SubjectIndex(subjects, tenants), SubjectIndex(subjects, tenants)
    for slot in range(5000):
        index.add(slot)
    bulk.add_all(range(5000), 5000)
    for one in (index, bulk):
        assert all(sorted(one.of(f"u-{n}", None)) == [2 * n, 2 * n + 1] for n in range(2500))
        assert one.of("nobody", None) == []
        assert one.of("u-1", "acme") == []


def test_to_end_one_of_very_many_sessions_of_a_subject_does_not_walk_past_the_others() -> None:
    """All visitors of a site may be one subject. Walking would take half a minute here, the oldest lying deepest."""
    count = 20_000
    index = SubjectIndex(["guest"] * count, [None] * count)
    for slot in range(count):
        index.add(slot)
    began = time.perf_counter()
    for slot in range(count):
        index.remove(slot)
    assert time.perf_counter() - began < 3
    assert index.of("guest", None) == []
