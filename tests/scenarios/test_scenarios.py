"""Does the engine still tell these stories as they were written down?

Each `*.txt` is a transcript (transcript.py says how to read it). A change of rules shows as a change of text: run
`REWRITE=1 pytest tests/scenarios`, and let the diff be reviewed. The oracle runs beside the engine in each of them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.scenarios.transcript import Player, parse, render

HERE = Path(__file__).parent
TRANSCRIPTS = sorted(path.name for path in HERE.glob("*.txt"))


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_scenario(name: str) -> None:
    """Play a transcript; the engine must say what stands there, or with REWRITE=1 what it says is put there."""
    path = HERE / name
    text = path.read_text()
    blocks = parse(text)
    player = Player()
    told: list[tuple[int, str, list[str], list[str]]] = []
    for block in blocks:
        if not block.command:
            continue
        said = player.play(block.command)
        if said != block.said:
            told.append((block.line, block.command, block.said, said))
        block.said = said
    if os.environ.get("REWRITE") == "1":
        path.write_text(render(blocks))
        return
    report = [f"{name}:{line}: {command}\n  written {old}\n  said    {new}" for line, command, old, new in told]
    assert not told, "\n".join(report)


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_a_transcript_is_rendered_as_it_was_read(name: str) -> None:
    """Rewriting changes what the engine says, never the commands or the comments."""
    text = (HERE / name).read_text()
    assert render(parse(text)) == text


def test_a_wrong_transcript_is_found() -> None:
    """The check itself: a story that the engine does not tell is seen to differ."""
    (first, second) = parse("partition\n----\nnothing\n\nat 0 closed s\n----\nended s closed\n")
    player = Player()
    assert player.play(first.command) == first.said
    assert player.play(second.command) != second.said
