"""Goal: docs/cli.md shows the help that the program gives. Method: its blocks are made anew and compared."""

from __future__ import annotations

from pathlib import Path

from lapse.pipeline.cli.flags import FLAGS
from lapse.pipeline.cli.reference import commands, documented, help_of, refresh

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_shows_the_present_help() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == refresh(page), "run: python -m lapse.pipeline.cli.reference docs/cli.md"


def test_the_page_shows_every_command_in_the_order_of_the_help() -> None:
    assert documented(PAGE.read_text(encoding="utf-8")) == commands()


def test_a_page_that_is_out_of_date_is_found() -> None:
    page = PAGE.read_text(encoding="utf-8")
    stale = page.replace("--gap-ms N", "--gap-length N", 1)
    assert stale != page
    assert refresh(stale) == page


def test_a_worker_takes_every_setting() -> None:
    text = help_of("lapse run")
    assert [name for name in FLAGS if f"--{name.replace('_', '-')}" not in text] == []
