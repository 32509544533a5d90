"""Does a service take only cookies that the demo's shop sealed?"""

from __future__ import annotations

import pytest

from lapse.pipeline.demo.login_cookie import COOKIE, new_identity, opened, sealed

KEY = b"k" * 32


def test_a_sealed_identity_opens_again() -> None:
    identity = new_identity("person-1", "acme", 1_700_000_000_000)
    assert opened(f"theme=dark; {COOKIE}={sealed(identity, KEY)}; a=b", KEY) == identity


def test_every_login_has_a_session_id_of_its_own() -> None:
    ids = {new_identity("person-1", "acme", 0).session_id for _ in range(100)}
    assert len(ids) == 100
    assert all(len(one) >= 32 for one in ids)


def test_another_key_does_not_open_it() -> None:
    assert opened(f"{COOKIE}={sealed(new_identity('p', 'acme', 0), KEY)}", b"other" * 8) is None


@pytest.mark.parametrize("value", ["", ".", "a.b", "bm90IGpzb24.x", "é.é", "a" * 5_000])
def test_what_is_not_a_sealed_cookie_is_nobody(value: str) -> None:
    assert opened(f"{COOKIE}={value}", KEY) is None
    assert opened(value, KEY) is None


def test_a_changed_cookie_is_nobody() -> None:
    body, _, mac = sealed(new_identity("person-1", "acme", 0), KEY).partition(".")
    assert opened(f"{COOKIE}={body[:-1]}{'A' if body[-1] != 'A' else 'B'}.{mac}", KEY) is None
