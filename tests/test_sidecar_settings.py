"""Goal: what a person tells a sidecar is what runs, beside the settings that all commands share.

Method: real files and real environment variables in an empty directory.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lapse.consumers.sidecar.config import SidecarConfig
from lapse.pipeline.cli.flags import SIDECAR
from lapse.pipeline.settings import Settings
from lapse.pipeline.sidecar_settings import SidecarSettings
from lapse.schemas.errors import ConfigError

from tests.cli.running import lapse

PAGE = Path(__file__).parents[1] / "docs" / "sidecar.md"


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_flag_wins_over_the_environment_and_that_over_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("lapse.toml").write_text(
        'prefix = "file."\n[sidecar]\nport = 1\nleeway_s = 1\nservice = "one"\nopen_routes = ["/a", "/b"]\n'
        'stale_routes = { "/pay" = "deny" }\n'
    )
    monkeypatch.setenv("LAPSE_SIDECAR_LEEWAY_S", "2")
    monkeypatch.setenv("LAPSE_SIDECAR_SERVICE", "two")
    told = SidecarSettings(service="three", cookie=None)
    assert (told.port, told.leeway_s, told.service, told.cookie) == (1, 2, "three", None)
    assert (told.open_routes, told.stale_routes) == (("/a", "/b"), {"/pay": "deny"})
    assert Settings().prefix == "file.", "other commands leave the table alone"


def test_lists_are_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAPSE_SIDECAR_STALE_ROUTES", "/pay=deny, /a=b=allow")
    told = SidecarSettings(session_claims="a, b", bearer=False)
    assert told.stale_routes == {"/pay": "deny", "/a=b": "allow"}
    assert (told.session_claims, told.bearer) == (("a", "b"), False)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("sidecar = 1", "it is a table"),
        ("[sidecar]\nports = 1", "no setting ports of the sidecar"),
        ("[sidecar]\nport = 65536", "LAPSE_SIDECAR_PORT"),
        ("[sidecar]\nstale_routes = '/pay=perhaps'", "LAPSE_SIDECAR_STALE_ROUTES"),
        ("[sidecar]\nbroken", "cannot be read"),
    ],
)
def test_what_is_refused_is_named(table: str, says: str) -> None:
    Path("lapse.toml").write_text(table)
    with pytest.raises(ConfigError, match=says):
        SidecarSettings()


def test_the_defaults_are_the_servers_own() -> None:
    told = SidecarSettings(cookie="sid").model_dump()
    assert SidecarConfig(bootstrap_servers="k:1", **told) == SidecarConfig(bootstrap_servers="k:1", cookie="sid")


def test_a_refusal_is_a_usage_error_in_one_line() -> None:
    outcome = lapse("sidecar", "--kafka", "127.0.0.1:1")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("lapse: nothing says whose a request is")
    outcome = lapse("sidecar", "--kafka", "127.0.0.1:1", "--key-file", "nowhere")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)


def test_the_page_has_every_setting_and_its_default() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("| setting | default |")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| ([^|]*) \|", table, re.MULTILINE))
    assert list(rows) == list(SIDECAR)
    for name, shown in rows.items():
        default = SidecarSettings.model_fields[name].default
        words = ",".join(default) if isinstance(default, tuple) else str(default)
        expected = {"True": "yes", "False": "no", "None": "none", "": "none", "{}": "none"}.get(words, f"`{words}`")
        assert shown == expected, name
