"""A learner of several processes: the same end as one, also when a rank is killed or stops."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prdp.cluster import build_workforce, start_ranks
from prdp.cluster.base import RewardWorker
from prdp.cluster.rank_processes import RankProcesses
from prdp.cluster.remote_ranks import RemoteRanks
from prdp.config import ClusterConfig, TrainConfig
from prdp.configuration.typed import typed
from prdp.diffusion import build_policy, build_sampler
from prdp.learners import RankSettings, build_learner, build_rank
from prdp.learners.learner import Learner
from prdp.support.rank_errors import RankMismatchError
from prdp.support.remote_rows import RemoteRows
from prdp.train import main
from prdp.types import PromptBatch, Rollout
from tests.points_run import killed, points_run


def settings_of(config: TrainConfig) -> RankSettings:
    return RankSettings(config.model, config.learner, config.sampler, config.objective, config.seed)


@pytest.fixture
def points(tmp_path: Path) -> TrainConfig:
    changes: dict[str, Any] = {"learner": {"microbatch": 4, "ema_decay": 0.5}, "objective": {"name": "nft", "draws": 4}}
    return typed(points_run(tmp_path, **changes))


@pytest.fixture
def started() -> Iterator[Callable[..., RemoteRanks]]:
    """Starts ranks that end with the test."""
    all_ranks = []

    def start(cluster: ClusterConfig, *settings: RankSettings) -> RemoteRanks:
        ranks = start_ranks(cluster, [partial(build_rank, one) for one in settings], "gloo")
        assert ranks is not None
        all_ranks.append(ranks)
        return ranks

    yield start
    for ranks in all_ranks:
        ranks.close()


def learner_of(config: TrainConfig, ranks: RemoteRanks | None = None) -> Learner:
    settings = settings_of(config)
    policy = build_policy(config.model, config.learner, seed=config.seed, keep_reference=False, only_network=True)
    table = policy.process.transitions(config.sampler)
    return build_learner(
        policy, table, 1.0, config.learner, config.objective, config.seed, 2, ranks=ranks, configuration=settings.digest
    )


def rollouts_of(config: TrainConfig, count: int) -> list[Rollout]:
    """Of the untouched policy, so that a learner takes them in turn."""
    learner = learner_of(config)
    sampler = build_sampler(config.model, config.learner, config.sampler, seed=config.seed, recorder=learner.recorder)
    made, texts = [], tuple(f"mixture a{number} b7 c1 d9 e0 f4" for number in range(3))
    for epoch in range(count):
        rollout = sampler.sample(PromptBatch(epoch, 0, texts, ({},) * 3), 4, config.seed)
        made.append(rollout.scored(np.random.default_rng(epoch).normal(size=12), {}))
    return made


def test_processes_end_as_one_does_though_one_is_killed_and_one_stops(
    points: TrainConfig, started: Callable[..., RemoteRanks], caplog: pytest.LogCaptureFixture
) -> None:
    cluster = ClusterConfig(learners=3, learner_timeout_seconds=5.0)
    ranks = started(cluster, settings_of(points), settings_of(points))
    assert isinstance(ranks, RankProcesses)
    rollouts = rollouts_of(points, 2)
    alone, together = learner_of(points), learner_of(points, ranks)
    pids = ranks.process_ids
    for number, rollout in enumerate([rollouts[0], rollouts[0], rollouts[1], rollouts[1]]):
        if number == 1:
            os.kill(ranks.process_ids[1], signal.SIGKILL)
        if number == 2:
            os.kill(ranks.process_ids[2], signal.SIGSTOP)
        alone.update(rollout)
        together.update(rollout)
    assert together.weights().checksum == alone.weights().checksum
    assert together.evaluation_weights().checksum == alone.evaluation_weights().checksum
    status = {row["name"]: row for row in ranks.status()}
    assert [status[f"learner rank {number}"]["restarts"] for number in (1, 2)] == [1, 1]
    assert status["learner rank 2"]["pid"] == ranks.process_ids[2]
    assert status["learner rank 2"]["state"] == "ready"
    assert "doing" not in status["learner rank 2"]
    assert ranks.last_fault is not None
    assert "hung" in ranks.last_fault["text"]
    assert f"learner rank 1 (process {pids[1]} on " in caplog.text
    assert "died: signal SIGKILL; it is started again as a copy of rank 0" in caplog.text
    assert f"learner rank 2 (process {pids[2]} on " in caplog.text
    assert "hung: no answer to" in caplog.text
    assert "cluster.learner_timeout_seconds=5" in caplog.text


def test_a_rank_of_another_configuration_is_refused_by_name_and_its_errors_arrive(
    points: TrainConfig, started: Callable[..., RemoteRanks]
) -> None:
    own = settings_of(points)
    other = dataclasses.replace(own, learner=dataclasses.replace(own.learner, adam_beta1=0.5))
    broken = dataclasses.replace(own, model=dataclasses.replace(own.model, family="unknown"))
    ranks = started(ClusterConfig(learners=3), other, broken)
    with pytest.raises(RankMismatchError, match=r"learner rank 1 \(process .*\) differs from rank 0 in configuration"):
        learner_of(points, ranks)
    with pytest.raises(ValueError, match=r"model\.family=unknown"):
        ranks.ask(2, "identity").result()


def test_a_run_of_two_that_was_killed_goes_on_as_a_run_of_one(tmp_path: Path) -> None:
    """And ends with the very checkpoint of a run that was always of one."""
    settings: dict[str, Any] = {"learner": {"microbatch": 4}}
    straight = points_run(tmp_path / "straight", **settings)
    broken = points_run(tmp_path / "broken", cluster={"learners": 2}, **settings)
    killed(broken)
    for config in (straight, {**broken, "cluster": {}, "checkpoint": {"every": 1, "resume": "auto"}}):
        main(typed(config))
    of_one, of_two = (
        (tmp_path / name / "checkpoints" / "epoch_00003" / "learner.safetensors").read_bytes()
        for name in ("straight", "broken")
    )
    assert of_one == of_two


def test_actors_of_ray_end_as_one_does_though_one_is_killed(
    points: TrainConfig, started: Callable[..., RemoteRanks], private_ray: Any
) -> None:
    ranks = started(ClusterConfig(kind="ray", learners=2), settings_of(points))
    (rollout,) = rollouts_of(points, 1)
    alone, together = learner_of(points), learner_of(points, ranks)
    for number in range(2):
        if number:
            os.kill(int(ranks.name(1).split()[4]), signal.SIGKILL)
        alone.update(rollout)
        together.update(rollout)
    assert together.weights().checksum == alone.weights().checksum


def test_rows_go_from_samplers_to_ranks_and_the_update_is_that_of_one_process(
    tmp_path: Path,
    started: Callable[..., RemoteRanks],
    private_ray: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The driver fetches what rank 0 learns from, and no image; a chunk that is lost in between is made again."""
    from prdp.cluster import chunk_references
    from prdp.cluster.actor_pool import GoneError

    points = typed(points_run(tmp_path, learner={"microbatch": 4}, objective={"clip_range": None}))
    alone, texts = learner_of(points), tuple(f"mixture a{number} b7 c1 d9 e0 f4" for number in range(4))
    prompts = PromptBatch(0, 0, texts, ({},) * 4)
    together = learner_of(points, started(ClusterConfig(kind="ray", learners=2), settings_of(points)))
    fetched: list[tuple[str, str]] = []
    fetch, lost = chunk_references.StoredPiece.fetch, [False]

    def noting(piece: Any, name: str) -> np.ndarray:
        fetched.append((piece.where, name))
        if name == "stored/latents" and not lost[0]:
            lost[0] = True
            monkeypatch.setattr(chunk_references, "fetch_result", gone)
        array: np.ndarray = fetch(piece, name)
        return array

    def gone(reference: Any) -> Any:
        monkeypatch.setattr(chunk_references, "fetch_result", fetch_result)
        raise GoneError("its node is gone")

    fetch_result = chunk_references.fetch_result
    monkeypatch.setattr(chunk_references.StoredPiece, "fetch", noting)
    rollouts = {}
    for kind in ("inline", "ray"):
        workforce = build_workforce(
            ClusterConfig(kind=kind),
            partial(build_sampler, points.model, points.learner, points.sampler, seed=3, recorder=alone.recorder),
            partial(RewardWorker, points.reward),
            1,
        )
        learner = {"inline": alone, "ray": together}[kind]
        try:
            workforce.publish(learner.weights())
            rollout = workforce.sample(prompts, images_per_prompt=4, seed=3)
            for _ in range(2):
                rollout = workforce.reading(rollout, lambda whole, learner=learner: learner.update(whole) and None)
            rollouts[kind] = rollout
        finally:
            workforce.close()
    assert together.weights().checksum == alone.weights().checksum
    latents = rollouts["ray"].stored["latents"]
    assert isinstance(latents, RemoteRows) and latents.shape == rollouts["inline"].stored["latents"].shape
    assert isinstance(rollouts["ray"].stored["log_ratio"], np.ndarray)
    of_rank_0 = {f"epoch 0, prompts {at} to {at}" for at in (0, 1)}
    assert {where for where, name in fetched if name.startswith("stored/")} == of_rank_0
    assert {name.split("/")[0] for _, name in fetched} <= {"stored", "conditions", "empty_conditions"}
    told = [line for line in caplog.text.splitlines() if "made again" in line]
    assert len(told) == 1 and "epoch 0, prompts 0 to 0 is lost: its node is gone; 1 chunk(s)" in told[0]
