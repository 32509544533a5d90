"""Goal: the index finds a subject's slots and no others. Method: hypothesis compares it with a dict of sets."""

import time
from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from lapse.pipeline.engine.subject_index import SubjectIndex

NAMES = [f"u-{number}" for number in range(7)]


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(NAMES)), max_size=120))
def test_it_finds_what_a_dict_of_sets_finds(toggles: list[tuple[int, str]]) -> None:
    subjects = [""] * 31
    index, plain = SubjectIndex(subjects), defaultdict[str, set[int]](set)
    for slot, name in toggles:
        if subjects[slot]:
            index.remove(slot)
            plain[subjects[slot]].discard(slot)
            subjects[slot] = ""
        else:
            subjects[slot] = name
            index.add(slot)
            plain[name].add(slot)
        for subject in NAMES:
            assert sorted(index.of(subject)) == sorted(plain[subject])


def test_it_grows_and_forgets_nothing() -> None:
    subjects = [f"u-{number // 2}" for number in range(5000)]
    index = SubjectIndex(subjects)
    for slot in range(5000):
        index.add(slot)
    assert all(sorted(index.of(f"u-{n}")) == [2 * n, 2 * n + 1] for n in range(2500))
    assert index.of("nobody") == []


def test_to_end_one_of_very_many_sessions_of_a_subject_does_not_walk_past_the_others() -> None:
    """All visitors of a site may be one subject. Walking would take half a minute here, the oldest lying deepest."""
    count = 20_000
    index = SubjectIndex(["guest"] * count)
    for slot in range(count):
        index.add(slot)
    began = time.perf_counter()
    for slot in range(count):
        index.remove(slot)
    assert time.perf_counter() - began < 3
    assert index.of("guest") == []
