"""Goal: names that users chose cannot steer an operator's terminal. Method: hostile names are shown."""

from __future__ import annotations

import pytest

from lapse.pipeline.cli.output import clock, print_table, printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("u-42", "u-42"),
        ("Zoë 日本", "Zoë 日本"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("two\nlines", "two\\nlines"),
        ("\u202eevil", "\\u202eevil"),
        ("\x9b31m", "\\x9b31m"),
    ],
)
def test_what_would_steer_a_terminal_is_shown_as_an_escape(name: str, shown: str) -> None:
    assert printable(name) == shown


def test_a_table_takes_nothing_for_markup_and_wraps_nothing_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    print_table(["name", "what"], [("[red]u[/red]", long), ("\x1b[31mu", "")])
    out = capsys.readouterr().out
    assert "[red]u[/red]" in out
    assert long in out
    assert "\x1b" not in out


def test_an_instant_is_shown_to_the_millisecond() -> None:
    assert clock(1_795_508_251_007).endswith(".007")
