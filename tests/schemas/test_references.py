"""Goal: a session id never leaves the service, and the same session has the same reference and ending everywhere.

Method: fixed vectors computed by hashlib and hmac in the test, and the edges: empty ids, empty keys, odd text.
"""

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapse.schemas import ConfigError, ending_id, is_session_reference, session_reference


def test_reference_is_the_start_of_base64url_of_sha256() -> None:
    assert session_reference("secret") == base64.urlsafe_b64encode(hashlib.sha256(b"secret").digest()).decode()[:22]
    # Pinned, for a change would make every live session unknown.
    assert session_reference("secret") == "K7gNU3sdo-OL0wNhqoVWhr"


def test_reference_under_a_key_is_of_hmac() -> None:
    digest = hmac.new(b"key", b"secret", hashlib.sha256).digest()
    assert session_reference("secret", b"key") == base64.urlsafe_b64encode(digest).decode()[:22]
    assert session_reference("secret", b"key") != session_reference("secret")


def test_text_and_its_utf8_are_one_session() -> None:
    assert session_reference("sécret") == session_reference("sécret".encode())


@pytest.mark.parametrize("empty", ["", b""])
def test_empty_session_id_is_refused(empty: str | bytes) -> None:
    with pytest.raises(ValueError, match="empty"):
        session_reference(empty)


def test_empty_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="key of session references is empty"):
        session_reference("secret", b"")


@given(st.text(min_size=1) | st.binary(min_size=1), st.none() | st.binary(min_size=1))
def test_property_every_id_has_a_reference(session_id: str | bytes, key: bytes | None) -> None:
    reference = session_reference(session_id, key)
    assert is_session_reference(reference)
    assert len(reference) == 22


@pytest.mark.parametrize("text", ["", "x" * 21, "x" * 23, "x" * 21 + "=", "x" * 21 + "/", "x" * 22 + "\n", "é" * 22])
def test_what_is_not_of_the_form_is_no_reference(text: str) -> None:
    assert not is_session_reference(text)


def test_ending_id_is_derived_from_the_reference_alone() -> None:
    reference = session_reference("secret")
    expected = base64.urlsafe_b64encode(hashlib.sha256(b"lapse.ending\0" + reference.encode()).digest()).decode()[:22]
    assert ending_id(reference) == expected == ending_id(reference)
    assert ending_id(reference) != reference
    assert ending_id(session_reference("other")) != expected
