"""Whether a cluster can hold the actors, who goes where, and what people are told."""

from __future__ import annotations

import pytest

pytest.importorskip("ray")

from prdp.cluster.base import ClusterSetupError
from prdp.cluster.placement import Node, PlacementReservation, PoolRequest, assign, plan
from prdp.config import ClusterConfig

NODES = [Node("10.0.0.1", {"CPU": 4.0, "GPU": 1.0}), Node("10.0.0.2", {"CPU": 2.0})]


def test_actors_are_placed_on_single_nodes():
    fractions = PoolRequest("sampler", 2, {"CPU": 1.0, "GPU": 0.5})
    assert assign([fractions, PoolRequest("reward actor", 2, {"CPU": 2.0})], NODES) == [
        {"sampler": 2, "reward actor": 1},
        {"reward actor": 1},
    ]
    assert assign([PoolRequest("sampler", 1, {"CPU": 1.0, "GPU": 2.0})], NODES) is None
    assert assign([PoolRequest("sampler", 2, {"CPU": 3.0})], NODES) is None
    assert assign([PoolRequest("sampler", 1, {"a100_node": 1.0})], NODES) is None
    assert NODES[0].resources == {"CPU": 4.0, "GPU": 1.0}


def test_spread_takes_the_emptiest_node():
    pools = [PoolRequest("sampler", 3, {"CPU": 1.0})]
    assert assign(pools, NODES) == [{"sampler": 3}, {}]
    assert assign(pools, NODES, spread=True) == [{"sampler": 2}, {"sampler": 1}]


def test_plan_says_who_goes_where():
    pools = [PoolRequest("sampler", 2, {"CPU": 1.0, "GPU": 0.5}), PoolRequest("reward actor", 1, {"CPU": 4.0})]
    with pytest.raises(ClusterSetupError) as caught:
        plan(ClusterConfig(address="auto", sampler_gpus=0.5), pools, NODES)
    assert str(caught.value).startswith(
        "the cluster (auto) cannot hold 2 samplers of 1 CPU and 0.5 GPU, 1 reward actor of 4 CPU: in all 6 CPU, 1 GPU; "
        "there are 2 node(s): 10.0.0.1 with 4 CPU, 1 GPU; 10.0.0.2 with 2 CPU, 0 GPU"
    )
    told = plan(ClusterConfig(sampler_gpus=0.5), pools[:1], NODES)
    assert told.splitlines() == [
        "cluster: 2 samplers of 1 CPU and 0.5 GPU; pack over 2 node(s), for instance",
        "  10.0.0.1  4 CPU, 1 GPU: 2 samplers",
    ]


def test_a_cluster_that_grows_may_be_too_small(caplog):
    told = plan(ClusterConfig(autoscaling=True), [PoolRequest("sampler", 9, {"CPU": 1.0})], NODES)
    assert told == "cluster: 9 samplers of 1 CPU; on nodes that the autoscaler has to add"
    assert "cannot hold 9 samplers of 1 CPU" in caplog.text


def test_gpus_left_idle_are_mentioned(caplog):
    plan(ClusterConfig(), [PoolRequest("sampler", 1, {"CPU": 1.0})], NODES)
    assert "the cluster has GPUs, but cluster.sampler_gpus is 0" in caplog.text


def test_resources_are_reserved_or_refused_with_what_is_free(private_ray):
    cores = int(private_ray.cluster_resources()["CPU"])
    reservation = PlacementReservation([PoolRequest("sampler", cores, {"CPU": 1.0})], "pack")
    reservation.wait(60)
    assert [one.placement_group_bundle_index for one in reservation.strategies("sampler")] == list(range(cores))
    late = PlacementReservation([PoolRequest("reward actor", 1, {"CPU": 1.0})], "pack")
    try:
        with pytest.raises(ClusterSetupError, match=r"no room for 1 reward actor of 1 CPU within .*=0\.5; .*: 0 CPU"):
            late.wait(0.5)
        reservation.close()
        late.wait(60)
    finally:
        late.close()
        reservation.close()


def test_actors_that_claim_nothing_need_no_reservation():
    reservation = PlacementReservation([PoolRequest("sampler", 2, {"CPU": 0.0})], "spread")
    reservation.wait(0.1)
    assert reservation.strategies("sampler") == [None, None]
    with pytest.raises(ValueError, match="no pool of reward actors"):
        reservation.strategies("reward actor")
