"""Goal: brokers go and come back, one or two of them, cleanly or not, and all clients resume by themselves.

Method: two workers on three brokers under a load of real publishers. A worker that ends by itself would be started
anew by a supervisor; here that is a failure: a worker sits out an outage of some 70 s. Afterwards the verifier
recomputes everything from the topics, and holds it against what people really did.
"""

from __future__ import annotations

import time

import pytest

from lapse.pipeline.processor.checkpoints import transactional_id

from tests.faults.cluster import NODES, Cluster
from tests.faults.estate import Estate
from tests.faults.metrics import Metrics
from tests.faults.reporting import note

# A hard kill is noticed after 9 s (broker.session.timeout.ms); Kafka's own tests allow 18 + 5.
AWAY_S = 20.0
OUTAGE_S = 30.0
GREY_S = 60.0
# A coordinator that is killed is noticed after 9 s; between this and that no checkpoint comes through, and without a
# fault each takes some ms. It is a bound of the histogram `lapse_checkpoint_seconds`.
TAKEN_OVER_S = 5.0


def at_work(estate: Estate, seed: int, **load: bool) -> None:
    for name in ("w-1", "w-2"):
        estate.worker(name).start()
    estate.owned_by("w-1", "w-2")
    estate.load(seed=seed, **load)
    time.sleep(5)


def healed(estate: Estate) -> None:
    """Wait until both workers tick again and have not been started anew."""
    estate.owned_by("w-1", "w-2")
    for name in ("w-1", "w-2"):
        assert estate.worker(name).log.count('"event": "started"') == 1, estate.worker(name).log[-3000:]


@pytest.mark.faults
@pytest.mark.parametrize("how", ["term", "kill"])
def test_each_broker_in_turn(cluster: Cluster, estate: Estate, how: str) -> None:
    at_work(estate, seed=31)
    for node in NODES:
        if how == "term":
            cluster.term(node)
        else:
            cluster.kill(node)
        time.sleep(AWAY_S)
        cluster.start(node)
        cluster.await_in_sync()
        healed(estate)
    estate.end_load()
    note(f"{how.upper()} of each broker in turn, {AWAY_S:.0f} s each", estate.verify(AWAY_S))


@pytest.mark.faults
def test_the_controller_and_a_leader_are_killed(cluster: Cluster, estate: Estate) -> None:
    at_work(estate, seed=32)
    controller = cluster.controller()
    cluster.kill(controller)
    time.sleep(AWAY_S)
    cluster.start(controller)
    cluster.await_in_sync()
    assert cluster.controller() != controller
    leader = cluster.leader(f"{estate.settings.prefix}activity", 0)
    cluster.kill(leader)
    time.sleep(AWAY_S)
    assert cluster.leader(f"{estate.settings.prefix}activity", 0) != leader
    cluster.start(leader)
    cluster.await_in_sync()
    healed(estate)
    estate.end_load()
    note("KILL of the active controller, then of the leader of activity-0", estate.verify(AWAY_S))


@pytest.mark.faults
def test_two_of_three_are_away_for_30_s_and_what_services_kept_counts(cluster: Cluster, estate: Estate) -> None:
    """Nothing can be appended meanwhile. The `steady` people click all the while and must not end."""
    at_work(estate, seed=33)
    cluster.kill(1, 2)
    time.sleep(OUTAGE_S)
    cluster.start(1, 2)
    cluster.await_in_sync()
    healed(estate)
    time.sleep(5)
    estate.end_load()
    report = estate.verify(OUTAGE_S)
    held = sum(1 for one in estate.expiries.to_end() if one.json.get("held"))
    assert held > 0, "no ending was held: the outage was none"
    note("KILL of two of three brokers for 30 s", {"held_endings": held} | report)


@pytest.mark.faults
def test_the_transaction_coordinator_is_killed_in_a_checkpoint(cluster: Cluster, estate: Estate) -> None:
    """Checkpoints every 100 ms, so that some partition is within one at nearly any instant."""
    metrics = {name: Metrics() for name in ("w-1", "w-2")}
    for name, told in metrics.items():
        estate.worker(name).start(LAPSE_CHECKPOINT_INTERVAL_MS="100", **told.variables)
    estate.owned_by("w-1", "w-2")
    estate.load(seed=34)
    time.sleep(5)
    cut_off = []
    for _ in range(2):
        before = sum(told.checkpoints_beyond(TAKEN_OVER_S) for told in metrics.values())
        node = cluster.coordinator_of_transaction(transactional_id(estate.settings.group, 0))
        cluster.kill(node)
        time.sleep(AWAY_S)
        cluster.start(node)
        cluster.await_in_sync()
        healed(estate)
        cut_off.append(sum(told.checkpoints_beyond(TAKEN_OVER_S) for told in metrics.values()) - before)
        assert cut_off[-1] > 0, "no checkpoint was open while the coordinator was away"
    estate.end_load()
    note(
        "KILL of the transaction coordinator under checkpoints each 100 ms, twice",
        {"checkpoints_beyond_5_s": cut_off} | estate.verify(AWAY_S),
    )


@pytest.mark.faults
def test_a_grey_leader(cluster: Cluster, estate: Estate) -> None:
    """SIGSTOP for 20 s: connections stay, nothing answers, and no second id comes of it."""
    at_work(estate, seed=35)
    leader = cluster.leader(f"{estate.settings.prefix}activity", 0)
    cluster.stop(leader)
    time.sleep(AWAY_S)
    cluster.cont(leader)
    cluster.await_in_sync()
    healed(estate)
    estate.end_load()
    note("SIGSTOP of the leader of activity-0 for 20 s", estate.verify(AWAY_S))


@pytest.mark.faults
def test_a_leader_is_grey_for_a_minute_and_whoever_hangs_is_started_again(cluster: Cluster, estate: Estate) -> None:
    """Twice as long as a fetch waits for its answer, and then the client may ask the same broker who leads now.

    A worker whose consumer hangs like that is ended by its watchdog, for a supervisor to start it again.
    """
    at_work(estate, seed=37)
    leader = cluster.leader(f"{estate.settings.prefix}activity", 0)
    with estate.supervised() as ended:
        cluster.stop(leader)
        time.sleep(GREY_S)
        cluster.cont(leader)
        took_s = estate.owned_by("w-1", "w-2", within_s=60)
        cluster.await_in_sync()
    assert all("the consumer stands still" in last_words for last_words in ended), ended
    estate.end_load()
    figures = {"ended_by_watchdog": len(ended), "resumed_after_s": round(took_s, 1)}
    note("SIGSTOP of the leader of activity-0 for 60 s", figures | estate.verify(GREY_S))


@pytest.mark.faults
def test_a_brokers_disk_is_full(cluster: Cluster, estate: Estate) -> None:
    """The broker halts by itself, the others go on; with room again it comes back from what it has on its disk."""
    at_work(estate, seed=36)
    with cluster.small_disk(3, free_mib=16) as disk:
        healed(estate)
        disk.fill()
        began = time.monotonic()
        cluster.await_end(3, within_s=120)
        halted_s = time.monotonic() - began
        time.sleep(AWAY_S)
        healed(estate)
        disk.free()
        cluster.start(3)
        cluster.await_in_sync()
        healed(estate)
    cluster.heal()
    healed(estate)
    estate.end_load()
    note(
        "a broker's disk is full until it halts, and for 20 s more",
        {"halted_after_s": round(halted_s, 1)} | estate.verify(AWAY_S),
    )
