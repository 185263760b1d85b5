"""A learner of many ranks against one of one: the same bits, whatever is learned and whoever is lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stub_learners import KNOBS, ON_DENOISING
from stub_policy import SCHEDULER, StubPolicy, stub_rollout
from thread_ranks import ThreadRanks

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_policy, build_sampler
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.variance_preserving import build_transitions
from prdp.learners import build_learner
from prdp.learners.engine import microbatches
from prdp.learners.learner import Learner
from prdp.learners.rank import LearnerRank, fingerprint, part_of
from prdp.learners.sharded_engine import ShardedEngine, shares_of
from prdp.support.rank_errors import RankDriftError, RankMismatchError
from prdp.types import PromptBatch, Rollout

STEPS, SEED = 4, 11
TRANSITIONS = build_transitions(SCHEDULER, steps=STEPS)


class SinglePolicy(StubPolicy):
    """The stub with a float32 network, as real ones are: sums of its gradients are exact in float64 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.network.float()

    def output(
        self,
        latents: torch.Tensor,
        times: torch.Tensor,
        conditions: Conditions,
        guidance_scale: float,
        network: torch.nn.Module | None = None,
    ) -> torch.Tensor:
        states = conditions.fields["states"] / 10.0
        flat = torch.cat([latents.flatten(1), times[:, None] / 1000.0, states], dim=1)
        output: torch.Tensor = (network or self.network)(flat.float()).view_as(latents).double()
        return output


def build(objective: Mapping[str, Any], count: int, *, updates_per_epoch: int = 1, **learner: Any) -> Learner:
    config = LearnerConfig(mode="full", **{"learning_rate": 1e-3, "microbatch": 5, "ratio_tolerance": 1e-4, **learner})

    def one() -> Learner:
        return build_learner(SinglePolicy(), TRANSITIONS, 1.0, config, objective, SEED, updates_per_epoch)

    def rank(number: int) -> LearnerRank:
        return LearnerRank(one().engine)  # type: ignore[arg-type]

    if count == 1:
        return one()
    ranks = ThreadRanks(count, rank)
    return build_learner(
        SinglePolicy(), TRANSITIONS, 1.0, config, objective, SEED, updates_per_epoch, ranks=ranks
    )


def ranks_of(learner: Learner) -> ThreadRanks:
    assert isinstance(learner.engine, ShardedEngine)
    ranks = learner.engine._replicas._ranks
    assert isinstance(ranks, ThreadRanks)
    return ranks


def rollout_of(prompts: int = 5) -> Rollout:
    return stub_rollout(SinglePolicy(), TRANSITIONS, prompts=prompts)


CASES = [
    ("prdp", {}, {}),
    ("prdp", {}, {"microbatch": 37}),  # whole groups: coefficients are found in the pass with gradient
    ("grpo", {}, {"ema_decay": 0.9}),
    ("prdp", ON_DENOISING, {"microbatch": 24}),
    ("rebel", ON_DENOISING, {"ema_decay": 0.9}),
    ("best_of_n", {}, {}),
    ("nft", {}, {}),
    ("dgpo", {}, {"weight_decay": 0.1, "microbatch": 24}),  # the reference's error is found beside its output
    ("fdfo", {}, {}),
]


@pytest.mark.parametrize(("name", "knobs", "learner"), CASES)
def test_the_update_is_the_same_to_the_bit_for_any_number_of_ranks(
    name: str, knobs: dict[str, Any], learner: dict[str, Any]
) -> None:
    rollout, objective = rollout_of(), {"name": name, **KNOBS[name], **knobs}
    states, metrics = [], []
    for count in (1, 2, 4):
        learners = build(objective, count, updates_per_epoch=2, **learner)
        told = [learners.update(rollout) for _ in range(3)]
        metrics.append([{key: value for key, value in one.items() if not key.startswith("time/")} for one in told])
        states.append(learners.state()[0])
    assert metrics[0] == metrics[1] == metrics[2]
    assert states[0].keys() == states[1].keys() == states[2].keys()
    for key, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][key], key)
        np.testing.assert_array_equal(value, states[2][key], key)
    assert not np.array_equal(value, SinglePolicy().weights.export(0).tensors[key.split("/")[-1]])


def test_a_float32_sum_would_depend_on_the_ranks() -> None:
    """What the float64 sums are for: the same test with float32 sums tells the ranks apart."""
    rollout, checksums = rollout_of(), []
    for count in (1, 2):
        learner = build({"name": "prdp", **KNOBS["prdp"]}, count)
        engines: list[Any] = [learner.engine]
        if count > 1:
            engines = [learner.engine._engine, *(rank.engine for rank in ranks_of(learner)._ranks.values())]  # type: ignore[attr-defined]
        for engine in engines:
            engine._sum_dtype = torch.float32
        learner.update(rollout)
        checksums.append(learner.weights().checksum)
    assert checksums[0] != checksums[1]


def test_a_run_goes_on_with_another_number_of_ranks() -> None:
    rollout, objective = rollout_of(), {"name": "nft", **KNOBS["nft"]}
    straight = build(objective, 1, updates_per_epoch=2, ema_decay=0.9)
    for _ in range(4):
        straight.update(rollout)
    state: Any = None
    for count in (1, 2, 4, 3):
        learner = build(objective, count, updates_per_epoch=2, ema_decay=0.9)
        if state is not None:
            learner.load_state(*state)
        learner.update(rollout)
        state = learner.state()
    assert learner.weights().checksum == straight.weights().checksum
    assert learner.evaluation_weights().checksum == straight.evaluation_weights().checksum


@pytest.mark.parametrize(
    "losses",
    [
        [(1, "evidence")],
        [(2, "accumulate"), (2, "adopt")],
        [(1, "reduce")],
        [(1, "apply"), (2, "move")],
        [(1, "take"), (2, "take")],
    ],
    ids=lambda losses: "-".join(method for _, method in losses),
)
def test_a_lost_rank_is_replaced_by_a_copy_and_nothing_changes(losses: list[tuple[int, str]]) -> None:
    objective = {"name": "dgpo", **KNOBS["dgpo"]}
    alone, learner = build(objective, 1, ema_decay=0.9), build(objective, 3, ema_decay=0.9)
    ranks = ranks_of(learner)
    for update in range(3):
        if update == 1:
            ranks.losses = list(losses)
        rollout = rollout_of()
        learner.update(rollout)
        alone.update(rollout)
    assert not ranks.losses, "all of them struck"
    assert learner.weights().checksum == alone.weights().checksum
    for number, _ in losses:
        assert (number, "adopt") in ranks.calls


def test_a_rank_is_sent_its_rows_once() -> None:
    learner = build({"name": "nft", **KNOBS["nft"]}, 4, updates_per_epoch=2)
    rollout = rollout_of(prompts=8)
    for _ in range(2):
        learner.update(rollout)
    ranks = ranks_of(learner)
    assert sorted(number for number, _ in ranks.taken) == [1, 2, 3]
    assert max(images for _, images in ranks.taken) <= 3 * rollout.images_per_prompt, "8 prompts over 4 ranks"
    learner.update(dataclasses.replace(rollout))
    assert len(ranks.taken) == 6


def test_a_rank_with_other_weights_ends_the_run_by_name() -> None:
    learner = build({"name": "prdp", **KNOBS["prdp"]}, 3)
    rollout = rollout_of()
    learner.update(rollout)
    engine: Any = ranks_of(learner)._ranks[2].engine
    with torch.no_grad():
        next(iter(engine._parameters.values()))[0, 0] += 1e-6
    with pytest.raises(RankDriftError, match=r"learner rank 2 \(thread\) has other weights after update 2"):
        learner.update(rollout)


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"microbatch": 6}, "microbatch: '6', expected '5'"), ({"seed": 1}, "configuration: 'other'")],
)
def test_a_rank_that_is_built_otherwise_is_refused_at_the_start(change: dict[str, int], expected: str) -> None:
    objective = {"name": "prdp", **KNOBS["prdp"]}

    def rank(number: int) -> LearnerRank:
        config = LearnerConfig(mode="full", microbatch=change.get("microbatch", 5) if number == 2 else 5)
        learner = build_learner(SinglePolicy(), TRANSITIONS, 1.0, config, objective, SEED)
        return LearnerRank(learner.engine, "other" if "seed" in change and number == 2 else "")  # type: ignore[arg-type]

    with pytest.raises(RankMismatchError, match=rf"rank 2 \(thread\) differs from rank 0 in {expected}"):
        build_learner(
            SinglePolicy(), TRANSITIONS, 1.0, LearnerConfig(mode="full", microbatch=5), objective, SEED,
            ranks=ThreadRanks(3, rank),
        )  # fmt: skip


def test_evidence_that_is_not_a_number_is_named_by_its_cell_whoever_computed_it() -> None:
    rollout = rollout_of()
    rollout.stored["latents"][18, 1] = np.nan
    with pytest.raises(ValueError, match=r"'log_ratio' of update 0 is nan at image 18, step 0 \(time"):
        build({"name": "prdp", **KNOBS["prdp"]}, 3).update(rollout)


def test_shares_are_even_and_keep_the_order() -> None:
    parts = microbatches(np.arange(100), 7)
    for count in (2, 3, 5):
        shares = shares_of(parts, count)
        assert np.array_equal(np.concatenate([one for share in shares for one in share]), np.arange(100))
        assert np.ptp([len(share) for share in shares]) <= 1
    assert [len(share) for share in shares_of(parts[:2], 4)] == [1, 1, 0, 0]
    groups = microbatches(np.arange(60), 25, group=10)
    assert [len(one) for one in groups] == [20, 20, 20]


def test_a_part_of_a_rollout_names_its_groups_as_the_whole_does() -> None:
    whole = rollout_of()
    part = part_of(whole, 2, 4)
    np.testing.assert_array_equal(part.group_ids, whole.group_ids[8:16])
    np.testing.assert_array_equal(part.stored["latents"], whole.stored["latents"][8:16])
    assert len(part) == 8
    assert part.images.nbytes == 0


def test_a_fingerprint_tells_tensors_apart() -> None:
    value = {"a": torch.arange(4.0), "b": torch.tensor(True), "c": torch.ones(2, dtype=torch.bfloat16)}
    same = fingerprint({key: one.clone() for key, one in value.items()})
    assert fingerprint(value) == same
    assert fingerprint({**value, "a": value["a"] + 1e-6}) != same
    assert fingerprint({**value, "c": value["c"].half()}) != same


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_float16_gradients_of_a_unet_are_the_same_bits(narrow_pipeline: Path, mode: str) -> None:
    """The scale of float16 is found on the host, and backs off by all ranks at once; evidence is spot-checked."""
    model = ModelConfig(path=str(narrow_pipeline))
    config = LearnerConfig(mode=mode, lora_rank=2, autocast="float16", microbatch=2, learning_rate=1e-3)
    sampling = SamplerConfig(steps=2, microbatch=4)
    objective = {"name": "prdp", "beta": 0.5, "clip_range": 0.5}

    def learner(ranks: ThreadRanks | None = None) -> Learner:
        policy = build_policy(model, config, seed=SEED, keep_reference=False, only_network=True)
        transitions = policy.process.transitions(sampling)
        return build_learner(policy, transitions, 5.0, config, objective, SEED, ranks=ranks)

    one, two = learner(), learner(ThreadRanks(2, lambda number: LearnerRank(learner().engine)))  # type: ignore[arg-type]
    sampler = build_sampler(model, config, sampling, seed=SEED, recorder=one.recorder)
    prompts = PromptBatch(0, 0, ("red circle", "blue square"), ({}, {}))
    rollout = sampler.sample(prompts, 2, SEED).scored(np.arange(4.0), {})
    metrics = [{**each.update(rollout), "time/learn": 0.0} for each in (one, two)]
    assert metrics[0] == metrics[1]
    assert metrics[0]["gradient_scale"] != 1.0
    assert one.weights().checksum == two.weights().checksum
