"""The family under the loop: a short run comes nearer to the optimum, and misfits are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from prdp.commands.train import check_start
from prdp.config import TrainConfig
from prdp.configuration.compose import Composer
from prdp.diffusion import build_sampler
from prdp.evidence.trajectory import TrajectoryRecorder
from prdp.prompts import build_prompts
from prdp.prompts.stream import fixed_prompts
from prdp.support.errors import ConfigError
from prdp.train import main
from prdp.types import Weights
from prdp.worlds.mixtures.distance import distance_to_optimum


def composed(folder: Path, *overrides: str) -> TrainConfig:
    with Composer(("experiment=mixtures_large", f"output_dir={folder}", *overrides)) as composer:
        config: TrainConfig = composer.jobs()[0].config
    return config


SHORT = (
    "epochs=12",
    "prompts_per_epoch=32",
    "sampler.steps=8",
    "objective.beta=7",
    "learner.learning_rate=1e-2",
    "evaluation.every=0",
    "evaluation.final_prompts=16",
    "tracking.console=false",
)


@pytest.mark.slow
def test_a_short_run_comes_nearer_to_the_optimum(tmp_path: Path) -> None:
    config = composed(tmp_path / "run", *SHORT)
    main(config)
    prompts = fixed_prompts(build_prompts("prompts.heldout", config.prompts.heldout), 32, seed=0)
    found = []
    for trained in (False, True):
        sampler = build_sampler(
            config.model, config.learner, config.sampler, seed=config.seed, recorder=TrajectoryRecorder()
        )
        if trained:
            sampler.load_weights(Weights.of(1, load_file(tmp_path / "run" / "weights" / "correction.safetensors")))
        found.append(distance_to_optimum(sampler.sample(prompts, 64, seed=1), kl_weight=0.5))
    start, end = found
    assert start["kl"] == 0.0 < end["kl"]
    assert start["objective"] < end["objective"] < end["objective_optimum"]
    assert end["kl_to_optimum"] < 0.75 * start["kl_to_optimum"]
    assert end["energy_distance"] < 0.75 * start["energy_distance"]


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("sampler.guidance_scale=3", "sampler.guidance_scale=3: must be 1"),
        ("learner.mode=lora", "learner.mode=lora: must be full"),
        ("model.path=shapes", "model.path=shapes: must be gaussian_mixtures"),
        ("model.dtype=bfloat16", "model.dtype=bfloat16: must be float32"),
        ("learner.autocast=float16", "learner.autocast=float16: must be null"),
        ("learner.framework=jax", "learner.framework=jax: must be torch"),
    ],
)
def test_what_the_family_does_not_know_is_refused(tmp_path: Path, override: str, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        check_start(composed(tmp_path, override))
