"""Do the examples of docs/testing.md run, and are those of examples/ short enough to be read at once?

Each block of the page is a test module of its own, run by pytest as a user would. That the others run is shown by
tests/integration.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "testing.md"
LINES_MAX = 40  # of code and comments: the formatter wants two blank lines between functions


def test_the_examples_of_the_page_pass_as_they_stand(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for number, block in enumerate(blocks):
        (tmp_path / f"test_example_{number}.py").write_text(block)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{sum(block.count('def test_') for block in blocks) + 4} passed" in done.stdout  # four run for both guards


@pytest.mark.parametrize("framework", ["django", "fastapi", "flask", "grpc", "litestar", "starlette", "wsgi"])
def test_a_guarded_application_of_each_framework_takes_few_lines(framework: str) -> None:
    files = sorted((ROOT / "examples" / framework).glob("*.py"))
    lengths = {file.name: sum(bool(line.strip()) for line in file.read_text().splitlines()) for file in files}
    assert lengths
    assert max(lengths.values()) <= LINES_MAX, lengths
