"""Goal: every setting can be given as a flag, a variable and in the file, and wins in this order.

Method: the tables of flags are compared with the settings' own fields; a command of the test's own is told a setting in
each place.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from typer.testing import CliRunner

from lapse.pipeline.cli import flags
from lapse.pipeline.cli.command import command
from lapse.pipeline.settings import SECRETS, Settings
from lapse.pipeline.sidecar_settings import SidecarSettings

# A secret is no flag: arguments can be read by every user of the machine.
SECRET = {f"{name}_given" for name in SECRETS}


def test_every_setting_but_the_secret_is_a_flag() -> None:
    assert set(flags.FLAGS) == set(Settings.model_fields) - SECRET


def test_every_setting_of_the_sidecar_is_a_flag_of_its_command() -> None:
    assert set(flags.SIDECAR) == set(SidecarSettings.model_fields)
    assert not set(flags.SIDECAR) & set(flags.FLAGS)


@pytest.mark.parametrize("name", flags.SIDECAR)
def test_a_flag_of_the_sidecar_says_what_its_setting_says_and_takes_what_it_takes(name: str) -> None:
    kind, about = flags.SIDECAR[name]
    field = SidecarSettings.model_fields[name]
    assert about == field.description
    assert field.annotation is not None
    takes = set(get_args(field.annotation)) or {field.annotation}
    if issubclass(kind, enum.Enum):
        assert takes == {member.value for member in kind}
    elif kind is not str or field.annotation is str:  # lists are text, comma separated
        assert kind in takes


@pytest.mark.parametrize("name", flags.FLAGS)
def test_a_flag_says_what_the_setting_says_and_takes_what_it_takes(name: str) -> None:
    kind, about = flags.FLAGS[name]
    field = Settings.model_fields[name]
    assert about == field.description
    assert field.annotation is not None
    takes = set(get_args(field.annotation)) or {field.annotation}
    if issubclass(kind, enum.Enum):
        assert takes == {member.value for member in kind}
    else:
        assert kind in takes


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """A command of our own, run in an empty directory; it returns the settings it got."""
    monkeypatch.chdir(tmp_path)
    got: list[Settings] = []

    def run(*arguments: str) -> Settings:
        app = typer.Typer()

        @command(app, "probe", flags.EVERYTHING)
        def probe(settings: Any) -> None:
            got.append(settings)

        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 0, result.output
        return got.pop()

    return run


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_file(
    told: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("lapse.toml").write_text("gap_ms = 4001\n", encoding="utf-8")
    assert told().gap_ms == 4001
    monkeypatch.setenv("LAPSE_GAP_MS", "4002")
    assert told().gap_ms == 4002
    assert told("--gap-ms", "4003").gap_ms == 4003


def test_a_choice_reaches_the_settings_as_its_word(told: Callable[..., Settings]) -> None:
    assert told("--unknown-sessions", "reject").unknown_sessions == "reject"
