"""Goal: `lapse broker` starts a broker that the other commands find by themselves, tells how it is, and ends it.

Method: the real program in an empty directory. What kind of broker comes is the machine's affair.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.brokers import Broker
from tests.cli.running import lapse


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_a_broker_comes_is_found_and_goes() -> None:
    up = lapse("broker", "up", "--json")
    assert up.code == 0, up.err
    try:
        [started] = up.rows
        assert started["started"] is True
        assert lapse("broker", "up").out.strip() == started["bootstrap"]
        [status] = lapse("broker", "status", "--json").rows
        assert (status["bootstrap"], status["serving"]) == (started["bootstrap"], 1)
        # Nothing names it, and the next command uses it.
        assert lapse("topics", "apply").code == 0
        unsure = lapse("broker", "down", "--erase")
        assert unsure.code == 2
        assert "--yes" in unsure.err
        assert lapse("broker", "status").code == 0
    finally:
        down = lapse("broker", "down", "--erase", "--yes")
    assert down.code == 0
    assert started["bootstrap"] in down.err
    assert lapse("broker", "status").code == 1
    assert lapse("broker", "down").code == 0


def test_a_broker_that_is_named_is_used_and_not_started(broker: Broker) -> None:
    [up] = lapse("broker", "up", "--json", "--kafka", broker.bootstrap).rows
    assert up == {"kind": "given", "bootstrap": broker.bootstrap, "started": False}
    [status] = lapse("broker", "status", "--json", "--kafka", broker.bootstrap).rows
    assert status == {"kind": "given", "bootstrap": broker.bootstrap, "pid": None, "serving": 1}
    assert broker.bootstrap in lapse("broker", "status", "--kafka", broker.bootstrap).out


def test_a_named_broker_that_does_not_answer_is_not_replaced() -> None:
    assert lapse("broker", "up", "--kafka", "127.0.0.1:1").code == 1
    assert lapse("broker", "status", "--kafka", "127.0.0.1:1").code == 1
