"""Goal: an order is written where the sessions are that it ends. Method: each target is placed; ids are looked at."""

from __future__ import annotations

import re

import pytest

from lapse.pipeline.operations.revocations import new_revocation_id, placement
from lapse.schemas import Revocation, partition_of, subject_key

EVERYWHERE = (0, 1, 2, 3)


def order(**target: object) -> Revocation:
    return Revocation.model_validate({"id": "01", "reason": "admin", **target})


@pytest.mark.parametrize(
    "target",
    [
        {"subject": "u-42"},
        {"subject": "u-42", "tenant": "acme"},
        {"session": "pJ0x", "subject": "u-42"},
        {"session": "pJ0x", "subject": "u-42", "tenant": "acme"},
    ],
)
def test_a_target_with_a_subject_is_keyed_and_placed_by_the_subject(target: dict[str, str]) -> None:
    tenant = target.get("tenant")
    assert placement(order(**target), 4) == (subject_key("u-42", tenant), (partition_of("u-42", tenant, 4),))


@pytest.mark.parametrize(
    "target", [{"tenant": "acme"}, {"everyone": True}, {"session": "pJ0x"}, {"session": "pJ0x", "tenant": "acme"}]
)
def test_a_target_without_a_subject_is_written_to_every_partition(target: dict[str, object]) -> None:
    assert placement(order(**target), 4) == (None, EVERYWHERE)


def test_an_id_is_a_ulid() -> None:
    assert re.fullmatch(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", new_revocation_id())
    # The example of the ULID specification: 1469918176385 ms are 01ARYZ6S41.
    assert new_revocation_id(1_469_918_176_385).startswith("01ARYZ6S41")


def test_ids_are_unique_and_sort_by_their_time() -> None:
    assert len({new_revocation_id(1) for _ in range(1000)}) == 1000
    assert new_revocation_id(1_000) < new_revocation_id(1_001) < new_revocation_id(2**47)
