"""Does docs/sidecar.md show what infra/proxies/ has? Its blocks are compared with the files that they name."""

import re
from pathlib import Path

from tests.proxies.running import PROXIES

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"<!-- from: (?P<path>\S+) -->\n```\w+\n(?P<shown>.*?)\n```\n", re.DOTALL)


def test_the_page_shows_the_files_as_they_are_and_every_proxy() -> None:
    blocks = list(BLOCK.finditer((ROOT / "docs" / "sidecar.md").read_text(encoding="utf-8")))
    for block in blocks:
        assert block["shown"] in (ROOT / block["path"]).read_text(encoding="utf-8"), block["path"]
    assert [Path(block["path"]).parent.name for block in blocks] == list(PROXIES)
