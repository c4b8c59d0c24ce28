"""`scripts/simulate_cluster.py` in small: a few hosts, for an hour."""

from collections import Counter
from dataclasses import replace

import pytest

pytest.importorskip("simpy")

from scripts import cluster_load, scaling_page, simulate_cluster
from scripts.cluster_load import GPUS_PER_HOST, KINDS, Plan, arrivals, service_s
from scripts.simulate_cluster import Cluster

SMALL = Plan(hosts=8, begin_h=10, hours=1)


@pytest.fixture(scope="module")
def usual() -> Cluster:
    return Cluster(SMALL).run()


@pytest.fixture(scope="module")
def to_zero() -> Cluster:
    return Cluster(replace(SMALL, min_replicas=0)).run()


def mean_wait_s(cluster: Cluster) -> float:
    """Of those that still wait, too."""
    waiting = [part for of in cluster.deployments for part in of.waiting]
    so_far = sum((cluster.env.now - at) * count for at, _, count, _ in waiting)
    ended = sum(wait * count for (_, wait), count in cluster.waits.items())
    return float(so_far + ended) / cluster.arrived


@pytest.mark.parametrize("name", ["usual", "to_zero"])
def test_every_request_is_served_or_still_there(name: str, request: pytest.FixtureRequest) -> None:
    cluster: Cluster = request.getfixturevalue(name)
    came = sum(count for of in cluster.deployments for *_, count in arrivals(of.rank, cluster.plan))
    running = sum(of.running for of in cluster.deployments)
    waiting = sum(part[2] for of in cluster.deployments for part in of.waiting)
    assert cluster.served > 10_000
    assert cluster.arrived == cluster.served + running + waiting == came
    assert cluster.waits.total() == cluster.served + running == cluster.requests.sum()
    assert sum(of.ongoing for of in cluster.deployments) == running + waiting


def test_gpus_are_given_once(usual: Cluster) -> None:
    assert all(0 <= free <= GPUS_PER_HOST for free in usual.free)
    held = sum(of.ready * of.kind.gpus for of in usual.deployments)
    assert 0 < held <= SMALL.hosts * GPUS_PER_HOST - sum(usual.free)


def test_only_a_model_without_replicas_starts_cold(usual: Cluster, to_zero: Cluster) -> None:
    assert usual.cold_starts == usual.cold_waits.total() == 0
    assert to_zero.cold_starts > 0
    # Such a request waits for a replica, at the least.
    assert max(wait for _, wait in to_zero.cold_waits) > simulate_cluster.PREPARE_S
    assert to_zero.cold_waits.total() < to_zero.waits.total() / 10


def test_with_more_hosts_the_same_traffic_waits_less() -> None:
    evening = replace(SMALL, begin_h=19, traffic_of=16)
    small, large = (Cluster(replace(evening, hosts=hosts)).run() for hosts in (8, 16))
    assert small.arrived == large.arrived
    assert mean_wait_s(small) > 2 * mean_wait_s(large)


def test_a_full_controller_decides_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling_page, "PUSH_COST_S", 0.1)
    late = Cluster(replace(SMALL, hours=0.2)).run()
    (first, _, replicas), (second, *_) = late.rounds[:2]
    share = scaling_page.controller_share(SMALL.hosts, replicas)
    assert (second - first) * 3600 == pytest.approx(share * scaling_page.PUSH_S)
    assert share > 1 > scaling_page.controller_share(SMALL.hosts, replicas, push_s=100)


# Seconds of an answer of 500 tokens to a prompt of 5,000: 70B in FP8 on two H100, published.
@pytest.mark.parametrize(("streams", "seconds"), [(1, 9.7), (25, 20.1), (50, 30.7)])
def test_service_times(monkeypatch: pytest.MonkeyPatch, streams: int, seconds: float) -> None:
    monkeypatch.setattr(cluster_load, "UNCACHED_PROMPT", 5_000)
    assert service_s(KINDS["70B"], 500, streams) == pytest.approx(seconds, rel=0.05)


def test_tables_go_between_the_markers(usual: Cluster, to_zero: Cluster) -> None:
    page = scaling_page.PAGE.read_text()
    larger = Cluster(replace(SMALL, hosts=2 * SMALL.hosts, hours=0.2)).run()
    tables = scaling_page.of_days([usual, to_zero]), scaling_page.of_sizes([usual, larger])
    once = scaling_page.written(page, tables)
    assert scaling_page.written(once, tables) == once
    assert f"| {to_zero.cold_starts} |" in once
    assert once.count("\n| full at |") == 1
    with pytest.raises(ValueError, match="marker"):
        scaling_page.written("no page", tables)


def test_quantiles_are_nearest_ranks() -> None:
    waits = Counter({(1, 0.0): 98, (1, 5.0): 1, (2, 7.0): 1})
    assert scaling_page.quantiles(waits, (0.5, 0.99, 1)) == [0.0, 5.0, 7.0]
    assert scaling_page.quantiles(waits, (0.5, 1), gpus=1) == [0.0, 5.0]
    assert scaling_page.quantiles(waits, (1,), gpus=8) == [0.0]


@pytest.mark.parametrize(
    ("shares", "hosts"), [([0.2, 0.3, 0.5], "55"), ([0.5, 0.9, 1.9], "21"), ([0.5, 2, 9], "13")]
)
def test_where_a_part_is_full(shares: list[float], hosts: str) -> None:
    assert scaling_page._full_at([10, 20, 30], shares) == hosts
