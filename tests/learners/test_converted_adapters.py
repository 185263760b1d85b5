"""Learning tensors that are in half precision for the time of a pass are float32 again, however the pass ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from thread_ranks import ThreadRanks

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_policy, build_sampler
from prdp.learners import build_learner
from prdp.learners.learner import Learner
from prdp.learners.rank import LearnerRank
from prdp.support.interruption import interruptions_raised
from prdp.types import PromptBatch, Rollout

SAMPLER = SamplerConfig(steps=2, guidance_scale=1.0, eta=0.0, timestep_spacing="trailing")
PRDP = {"name": "prdp", "evidence": "denoising", "beta": 1e-2, "clip_range": None, "draws": 1}


def learner(folder: Path, count: int = 1) -> Learner:
    """Finds coefficients in its passes in bfloat16; a microbatch is a group of 2 cells."""
    config = LearnerConfig(lora_rank=2, autocast="bfloat16", evidence_precision="half", microbatch=2)

    def one(ranks: ThreadRanks | None = None) -> Learner:
        policy = build_policy(ModelConfig(path=str(folder)), config, seed=0, keep_reference=False, only_network=True)
        table = policy.process.transitions(SAMPLER)
        return build_learner(policy, table, SAMPLER.guidance_scale, config, PRDP, 0, ranks=ranks)

    return one() if count == 1 else one(ThreadRanks(count, lambda number: LearnerRank(one().engine)))  # type: ignore[arg-type]


def drawn(one: Learner, folder: Path) -> Rollout:
    sampler = build_sampler(
        ModelConfig(path=str(folder)), LearnerConfig(lora_rank=2), SAMPLER, seed=0, recorder=one.recorder
    )
    prompts = PromptBatch(0, 0, ("red", "green", "blue", "grey"), ({},) * 4)
    return sampler.sample(prompts, 2, seed=3).scored(np.arange(8.0) % 3, {})


def tensors(one: Learner) -> dict[str, np.ndarray]:
    return {name: value for name, value in one.state()[0].items() if name.startswith("weights/")}


def test_a_rank_that_is_lost_between_its_passes_is_replaced_by_a_copy(narrow_pipeline: Path) -> None:
    alone, two = learner(narrow_pipeline), learner(narrow_pipeline, 2)
    rollout = drawn(alone, narrow_pipeline)
    two.engine._replicas._ranks.losses = [(1, "go_on")]  # type: ignore[attr-defined]
    for one in (alone, two):
        one.update(rollout)
    assert not two.engine._replicas._ranks.losses  # type: ignore[attr-defined]
    assert alone.weights().checksum == two.weights().checksum


@pytest.mark.parametrize("count", [1, 2])
def test_what_breaks_off_between_passes_leaves_the_weights_as_they_were(narrow_pipeline: Path, count: int) -> None:
    one = learner(narrow_pipeline, count)
    rollout, before = drawn(one, narrow_pipeline), tensors(one)

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one.update(rollout, progress=stop)
    after = tensors(one)
    assert {value.dtype for value in after.values()} == {np.dtype(np.float32)}
    assert all(np.array_equal(value, before[name]) for name, value in after.items())


class Signalling(dict[str, torch.Tensor]):
    """Has Ctrl-C arrive when a given number of its tensors has been gone through."""

    left: int

    def items(self) -> Any:
        return self._each()

    def _each(self) -> Iterator[tuple[str, torch.Tensor]]:
        for item in super().items():
            self.left -= 1
            if not self.left:
                signal.raise_signal(signal.SIGINT)
            yield item


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C is not ignored, as it is where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("of", "passes"), [("old", 1), ("old", 2), ("policy", 2), ("policy", 3)])  # to and fro
def test_ctrl_c_in_the_middle_of_an_exchange_leaves_the_weights_as_they_were(
    narrow_pipeline: Path, heard: None, of: Any, passes: int
) -> None:
    one = learner(narrow_pipeline)
    rollout, engine = drawn(one, narrow_pipeline), one.engine
    engine.keep("old")
    with torch.no_grad():
        for value in engine.policy.weights.parameters.values():
            value.add_(0.1)
    before, parameters = tensors(one), Signalling(engine.policy.weights.parameters)
    engine._parameters = parameters  # type: ignore[attr-defined]
    batch = engine.batch(rollout, 0)
    parameters.left = len(before) * passes - 1
    with interruptions_raised(), pytest.raises(KeyboardInterrupt):
        engine.evidence(batch, np.arange(2), of=of, channels=("denoising",), exact=of == "old")
    assert parameters.left <= 0
    engine._parameters = dict(parameters)  # type: ignore[attr-defined]
    after = tensors(one)
    assert all(np.array_equal(value, before[name]) for name, value in after.items())
