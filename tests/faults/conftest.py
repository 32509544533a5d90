"""What the fault scenarios run on: a cluster of three that a scenario may break, whole again before the next."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cluster import Cluster, three_brokers
from tests.faults.estate import Estate, estate_on


@pytest.fixture(scope="session")
def the_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with three_brokers(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster(the_cluster: Cluster) -> Iterator[Cluster]:
    """Three brokers in sync, whatever the scenario before did to them."""
    the_cluster.heal()
    yield the_cluster
    the_cluster.heal()


@pytest.fixture
def estate(cluster: Cluster, tmp_path: Path) -> Iterator[Estate]:
    """Topics of this scenario's own on the three brokers."""
    with estate_on(cluster.bootstrap, tmp_path) as made:
        yield made
