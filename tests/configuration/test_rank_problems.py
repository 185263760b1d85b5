"""What several processes that learn together are refused for, before any of them is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prdp.config import ClusterConfig, TrainConfig
from prdp.configuration.bounds import _rank_misfits, _store_misfits
from prdp.configuration.geometry import geometry_text
from prdp.configuration.preconditions import gpu_problems
from prdp.configuration.rank_problems import idle_rank_problems, rank_device_problems
from prdp.configuration.typed import typed
from prdp.support.errors import ConfigError
from tests.points_run import points_run


def configured(**changes: Any) -> TrainConfig:
    return typed(points_run(Path("unused"), **changes))


def test_more_processes_than_there_is_work_for() -> None:
    """3 prompts of 2 images with 2 noisy steps are 12 cells."""
    some = configured(cluster={"learners": 4}, learner={"microbatch": 4})
    (problem,) = idle_rank_problems(some)
    assert "cluster.learners=4: an update has 12 cells, which learner.microbatch=4 cuts into 3" in problem
    assert "at most 3, or learner.microbatch to at most 3" in problem
    assert idle_rank_problems(configured(cluster={"learners": 3}, learner={"microbatch": 4})) == []
    (problem,) = idle_rank_problems(configured(cluster={"learners": 13}, learner={"microbatch": 1}))
    assert problem.endswith("Set cluster.learners to at most 12")
    # Whole groups of 4 cells, of which 6 hold one.
    at_once = configured(cluster={"learners": 4}, learner={"microbatch": 6}, objective={"name": "prdp"})
    assert "cuts into 3" in idle_rank_problems(at_once)[0]
    assert "4: all learn, one samples and scores" in geometry_text(at_once)


@pytest.mark.parametrize(
    ("cluster", "model", "says"),
    [
        ({"learners": 4}, {}, "needs cuda:0 to cuda:3, a GPU for each process, and this machine has 2; "),
        ({"learners": 2}, {"device": "cuda:1"}, "needs cuda:1 to cuda:2"),
        ({"learners": 2, "kind": "ray"}, {}, "the others get none; set cluster.learner_gpus=1"),
        ({"learners": 2}, {"device": "mps"}, "would share one GPU"),
        ({"learners": 2}, {}, ""),
        ({"learners": 4}, {"device": "cpu"}, ""),
        ({"learners": 2, "kind": "ray", "learner_gpus": 1.0}, {}, ""),
    ],
)
def test_a_gpu_for_each_process(
    monkeypatch: pytest.MonkeyPatch, cluster: dict[str, Any], model: dict[str, Any], says: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    problems = rank_device_problems(configured(cluster=cluster, model=model))
    assert says in problems[0] if says else problems == []


def test_what_ray_has_to_keep_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    (problem,) = gpu_problems(ClusterConfig(kind="ray", learners=3, learner_gpus=1.0))
    assert "asks for 3 GPUs: learners=3 x learner_gpus=1" in problem


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cluster": {"learners": 6, "fsdp_size": 4}}, "must divide cluster.learners=6, the processes that learn"),
        ({"cluster": {"fsdp_size": 2}}, "must divide cluster.learners=1"),
        ({"learner": {"mode": "lora"}}, "needs learner.mode=full"),
        ({"learner": {"mode": "full", "framework": "jax"}}, "needs learner.framework=torch, not jax"),
        ({"learner": {"mode": "full", "optimizer": "adamw_8bit"}}, "needs learner.optimizer=adamw or adamw_fused"),
        ({}, ""),
    ],
)
def test_what_a_network_that_is_held_together_asks_for(changes: dict[str, Any], says: str) -> None:
    settings = {"cluster": {"learners": 4, "fsdp_size": 2}, **changes}
    if not says:
        assert configured(**settings).cluster.fsdp_size == 2
        return
    with pytest.raises(ConfigError, match=rf"^cluster\.fsdp_size=\d: {says}"):
        configured(**settings)


def test_keys_that_do_not_go_together() -> None:
    (problem,) = _rank_misfits(ClusterConfig(learner_timeout_seconds=3.0))
    assert problem.startswith("cluster.learner_timeout_seconds=3: has no effect with cluster.learners=1")
    for cluster, why in (
        (ClusterConfig(object_store_gib=2.0), "with cluster=inline rollouts stay in the process"),
        (ClusterConfig(kind="ray", address="auto", object_store_gib=2.0), "the nodes of cluster.address=auto have"),
    ):
        (problem,) = _store_misfits(cluster)
        assert problem.startswith("cluster.object_store_gib=2: needs a private Ray (cluster=ray): ") and why in problem
    assert _store_misfits(ClusterConfig(kind="ray", object_store_gib=2.0)) == []
    (problem,) = _rank_misfits(ClusterConfig(kind="ray", learners=2, learner_gpus=0.5))
    assert problem.startswith("cluster.learner_gpus=0.5: must be a whole number with cluster.learners=2")
    assert _rank_misfits(ClusterConfig(kind="ray", learners=2, learner_gpus=1.0)) == []
