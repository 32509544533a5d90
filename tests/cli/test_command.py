"""Goal: a script can go by the exit code and the outputs, and asking for help costs nothing.

Method: commands of the test's own fail in each way; the real program runs in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from lapse.pipeline.cli import flags
from lapse.pipeline.cli.command import command
from lapse.schemas.errors import ConfigError, InvariantError, LapseError, RuntimeFault

from tests.cli.running import lapse, run_program

NOWHERE = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("error", [ConfigError, RuntimeFault, InvariantError])
def test_an_error_of_ours_is_one_line_on_standard_error_and_exit_code_1(error: type[LapseError]) -> None:
    app = typer.Typer()

    @command(app, "probe", flags.LOG)
    def probe(settings: Any) -> None:
        raise error("the disk is full: make room")

    result = CliRunner().invoke(app, [])
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "lapse: the disk is full: make room\n")


def test_a_fault_of_our_own_is_not_hidden() -> None:
    app = typer.Typer()

    @command(app, "probe", flags.LOG)
    def probe(settings: Any) -> None:
        raise KeyError("no such thing")

    assert isinstance(CliRunner().invoke(app, []).exception, KeyError)


def test_without_its_extra_the_program_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from lapse.pipeline.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "lapse: typer is not installed: pip install 'lapse[pipeline]' brings the operators' tools\n"


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_what_a_command_returns_is_the_exit_code(returned: int | None, code: int) -> None:
    app = typer.Typer()

    @command(app, "probe", flags.LOG)
    def probe(settings: Any) -> int | None:
        return returned

    assert CliRunner().invoke(app, []).exit_code == code


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["topics", "check", "--partitions", "0"], "LAPSE_PARTITIONS"),
        (["topics", "check", "--kafka", "no-port"], "LAPSE_KAFKA"),
        (["topics", "check", "--prefix", "a b"], "LAPSE_PREFIX"),
        (["topics", "check", "--nonsense"], "--nonsense"),
        (["watch", "--since", "5"], "--since"),
        (["watch", "--cause", "boredom"], "boredom"),
        (["policy", "set", "p", "--idle", "5"], "--idle"),
        (["policy", "set", "p", "--idle", "5m", "--match-attribute", "role"], "--match-attribute"),
        (["policy", "set", "p", "--no-match", "--match-tenant", "acme"], "--no-match"),
        (["revoke", "everyone", "--yes"], "--reason"),
        (["revoke", "subject", "u", "--reason", "x", "--note", "x" * 65_536], "at most 65536"),
        (["revoke", "subject", "u" * 257, "--reason", "x"], "subject"),
        (["revoke", "subject", "", "--reason", "x"], "subject"),
        (["revoke", "tenant", "a/b", "--reason", "admin", "--yes"], "tenant"),
    ],
)
def test_a_usage_error_names_what_is_refused_and_ends_with_2(arguments: list[str], named: str) -> None:
    outcome = lapse(*arguments)
    assert outcome.code == 2
    assert named in outcome.err
    assert outcome.out == ""


def test_a_variable_that_is_refused_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAPSE_GRACE_MS", "soon")
    outcome = lapse("topics", "check")
    assert outcome.code == 2
    assert "LAPSE_GRACE_MS='soon'" in outcome.err


def test_a_worker_without_a_key_for_a_broker_elsewhere_is_refused() -> None:
    outcome = lapse("run", "--kafka", "198.51.100.7:9092")
    assert outcome.code == 2
    assert "LAPSE_WORKER_KEY" in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["topics", "apply"],
        ["topics", "check", "--json"],
        ["policy", "list"],
        ["policy", "set", "p", "--idle", "1m", "--absolute", "1h"],
        ["revoke", "subject", "u-42", "--reason", "admin"],
        ["watch"],
        ["run"],
    ],
)
def test_a_broker_that_does_not_answer_is_told_at_once(arguments: list[str]) -> None:
    outcome = lapse(*arguments, "--kafka", NOWHERE)
    assert outcome.code == 1
    assert outcome.out == ""
    assert f"no Kafka broker answers at {NOWHERE}" in outcome.err
    assert "lapse broker up" in outcome.err


def test_no_broker_here_is_exit_code_1() -> None:
    outcome = lapse("broker", "status")
    assert (outcome.code, outcome.out) == (1, "")
    assert "lapse broker up" in outcome.err
    assert lapse("broker", "status", "--json").rows == [{"kind": None, "bootstrap": None, "pid": None, "serving": 0}]


def test_help_loads_neither_kafka_nor_the_models() -> None:
    heavy = {"aiokafka", "faust", "msgspec", "pydantic", "pydantic_settings", "rich", "orjson", "asyncio"}
    probe = (
        "import sys, lapse.pipeline.cli.program as program\n"
        "from typer.testing import CliRunner\n"
        "before = set(sys.modules)\n"
        "import typer.main; typer.main.get_command(program.app)\n"
        f"print(*sorted({heavy!r} & set(before)))"
    )
    # The test runner of typer itself loads asyncio; what the program has loaded is looked at before it is used.
    probe = probe.replace("from typer.testing import CliRunner\n", "")
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []


def test_the_program_runs_by_its_module() -> None:
    outcome = run_program("--version")
    assert outcome.code == 0
    assert outcome.out.startswith("lapse ")
