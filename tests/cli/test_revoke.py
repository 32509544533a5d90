"""Goal: a secret is never shown or taken as an argument, and many are never ended by accident.

Method: the program is given what it must refuse, at a real (pseudo) terminal where it asks. The broker is named where
none is, so that an order that went on fails in another way.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.running import at_a_terminal, lapse

NOWHERE = ("--kafka", "127.0.0.1:1")
SECRET = "s3cr3t-session-id"
UNREACHED = "no Kafka broker answers"


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_what_is_no_reference_is_refused_and_not_repeated() -> None:
    outcome = lapse("revoke", "session", SECRET, "--reason", "admin", *NOWHERE)
    assert outcome.code == 2
    assert "--raw" in outcome.err
    assert SECRET not in outcome.out + outcome.err


def test_a_foreign_clients_reference_is_taken_where_that_is_said() -> None:
    assert UNREACHED in lapse("revoke", "session", "ref-1", "--as-is", "--reason", "admin", *NOWHERE).err


@pytest.mark.parametrize("ref", ["-hAcdefghijklmnopqrstu", "--cdefghijklmnopqrstuv", "_bcdefghijklmnopqrstuv"])
def test_a_reference_may_begin_with_a_dash(ref: str) -> None:
    assert UNREACHED in lapse("revoke", "session", ref, "--reason", "admin", *NOWHERE).err


def test_an_option_that_there_is_not_is_not_taken_for_a_reference() -> None:
    outcome = lapse("revoke", "session", "--reson", "--reason", "admin", *NOWHERE)
    assert outcome.code == 2
    assert "--help" in outcome.err


@pytest.mark.parametrize("given", ["", "\n"])
def test_raw_needs_a_session_id(given: str) -> None:
    outcome = lapse("revoke", "session", "--raw", "--reason", "admin", *NOWHERE, given=given)
    assert outcome.code == 2
    assert "standard input" in outcome.err


def test_raw_takes_no_argument() -> None:
    outcome = lapse("revoke", "session", SECRET, "--raw", "--reason", "admin", *NOWHERE, given=SECRET)
    assert outcome.code == 2
    assert SECRET not in outcome.err


def test_a_raw_id_is_shown_nowhere() -> None:
    outcome = lapse("revoke", "session", "--raw", "--reason", "admin", *NOWHERE, given=SECRET + "\n")
    assert UNREACHED in outcome.err
    assert SECRET not in outcome.out + outcome.err


def test_a_key_file_that_is_missing_or_empty_is_refused() -> None:
    Path("empty").touch()
    for name in ("missing", "empty"):
        outcome = lapse("revoke", "session", "--raw", "--key-file", name, "--reason", "x", *NOWHERE, given=SECRET)
        assert outcome.code == 2
        assert "--key-file" in outcome.err


@pytest.mark.parametrize("target", [["tenant", "acme"], ["everyone"]])
def test_where_nobody_can_be_asked_many_are_not_ended(target: list[str]) -> None:
    outcome = lapse("revoke", *target, "--reason", "incident", *NOWHERE)
    assert outcome.code == 2
    assert "--yes" in outcome.err
    assert UNREACHED not in outcome.err


@pytest.mark.parametrize(("target", "hit"), [(["tenant", "acme"], "tenant acme"), (["everyone"], "EVERY session")])
def test_at_a_terminal_it_says_what_it_would_do_and_asks(target: list[str], hit: str) -> None:
    order = ("revoke", *target, "--reason", "incident", *NOWHERE)
    refused, screen = at_a_terminal(*order, typed="n\n")
    assert screen.startswith("n")
    assert refused.code == 1
    assert hit in refused.err
    assert "nothing was done" in refused.err
    assert UNREACHED not in refused.err
    agreed, _ = at_a_terminal(*order, typed="y\n")
    assert UNREACHED in agreed.err


def test_a_raw_id_that_is_typed_is_not_shown() -> None:
    outcome, screen = at_a_terminal("revoke", "session", "--raw", "--reason", "admin", *NOWHERE, typed=SECRET + "\n")
    assert "Session id:" in outcome.err
    assert UNREACHED in outcome.err
    assert SECRET not in screen


def test_yes_asks_nothing() -> None:
    assert UNREACHED in lapse("revoke", "everyone", "--yes", "--reason", "incident", *NOWHERE).err
