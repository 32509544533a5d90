"""Goal: what is installed is what was meant: one distribution of three parts, a light SDK, a broker that can start.

Method: the wheel is built from this checkout by its own build back end and looked into; what an import loads is asked
of a fresh interpreter; the pins are compared with the declared requirements.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def project() -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in the wheel."""
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (built,) = target.glob("*.whl")
    return set(zipfile.ZipFile(built).namelist())


@pytest.mark.parametrize("part", ["schemas", "consumers", "pipeline"])
def test_each_part_is_in_the_wheel_with_its_types(wheel: set[str], part: str) -> None:
    assert f"lapse/{part}/__init__.py" in wheel
    assert f"lapse/{part}/py.typed" in wheel


def test_the_namespace_belongs_to_no_part(wheel: set[str]) -> None:
    assert "lapse/__init__.py" not in wheel
    assert {name.split("/")[1] for name in wheel if name.startswith("lapse/")} == {"schemas", "consumers", "pipeline"}


@pytest.mark.parametrize("name", ["pom.xml", "log4j2.xml", "compose.yaml"])
def test_an_installed_lapse_can_start_a_broker(wheel: set[str], name: str) -> None:
    assert f"lapse/pipeline/broker/kafka/{name}" in wheel


def test_the_sdk_loads_nothing_of_the_pipeline() -> None:
    code = (
        "import json, sys; import lapse.schemas, lapse.consumers.activity, lapse.consumers.guard; "
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules} | "
        "{name for name in sys.modules if name.startswith('lapse.')})))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    loaded = set(json.loads(done.stdout))
    assert "lapse.consumers.guard" in loaded
    assert not loaded & {"faust", "mode", "msgspec", "typer", "rich", "structlog", "pydantic_settings", "fastapi"}
    assert not any(name.startswith("lapse.pipeline") for name in loaded)


def test_every_requirement_is_pinned_and_no_host_is_named() -> None:
    text = (ROOT / "constraints.txt").read_text()
    pinned = set(re.findall(r"^([a-z0-9._-]+)==", text, re.MULTILINE))
    told = project()
    groups = [told["dependencies"], *dict(told["optional-dependencies"]).values()]  # type: ignore[call-overload]  # toml
    required = {re.split(r"[^A-Za-z0-9._-]", line)[0].lower() for group in groups for line in group}
    assert required - {"lapse"} <= pinned
    assert "://" not in text
    assert "--" not in text
