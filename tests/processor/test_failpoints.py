"""Does a failpoint kill exactly at its n-th pass, and never by mistake?"""

import pytest

from lapse.pipeline.processor.failpoints import FAILPOINTS, arm
from lapse.schemas import ConfigError


@pytest.mark.parametrize("name", FAILPOINTS)
@pytest.mark.parametrize("count", [1, 3])
def test_it_kills_at_its_nth_pass_and_at_no_other_point(name: str, count: int) -> None:
    killed: list[None] = []
    reach = arm(f"{name}:{count}", lambda: killed.append(None))
    for other in FAILPOINTS:
        if other != name:
            reach(other)
    for passes in range(1, count + 3):
        reach(name)
        assert len(killed) == (passes >= count)


def test_without_one_nobody_is_killed() -> None:
    for given in (None, ""):
        reach = arm(given, lambda: pytest.fail("killed"))
        for name in FAILPOINTS:
            reach(name)


@pytest.mark.parametrize(
    "given", ["before-publish", "before-publish:0", "before-publish:x", "nowhere:1", ":", "mid-restore:-1"]
)
def test_what_would_kill_nobody_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="must be name:n"):
        arm(given)
