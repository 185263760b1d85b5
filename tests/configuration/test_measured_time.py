"""Time of an epoch, from passes that are measured and passes that are counted."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from composing import compose

from prdp.cli import main
from prdp.config import TrainConfig
from prdp.configuration.measured_time import EpochTime, measure_epoch
from prdp.types import PromptBatch

PROMPTS = PromptBatch(0, 0, ("a small red circle", "two large stars"), ({}, {}))

HALF = ("learner.autocast=bfloat16", "learner.evidence_precision=half")


def config_of(pipeline: Path, *words: str) -> TrainConfig:
    sizes = ["prompts_per_epoch=4", "images_per_prompt=2", "sampler.steps=5", "sampler.microbatch=4"]
    sizes.append("sampler.prompts_per_chunk=2")
    fixed = ["experiment=shapes_smoke", "reward=redness", "learner.microbatch=3", "output_dir=x"]
    return compose(*fixed, f"model.path={pipeline}", *sizes, *words)


@pytest.mark.parametrize(
    ("words", "sample", "learn"),
    [
        # A tick is an encoding, a step or a decoding of 4 images: 5 steps in two microbatches, 2 decodings, 1 encoding.
        (["objective=prdp_denoising", "sampler.guidance_scale=1"], 13, 3 * 8 / 3 * 3),
        (["objective=prdp_denoising", "sampler.guidance_scale=3"], 13, 3 * 8 / 3 * 3),
        # And 16 cells, of the policy and the reference, as they are and better.
        (["objective=prdp_denoising", "sampler.guidance_scale=1", *HALF], 13, 3 * 8 / 3 * 3 + 16 * 4 / 3),
        # Four steps with noise are learned from, with a pass of the reference each; one more is taken without.
        (["objective=prdp", "sampler.deterministic_final_steps=1"], 5 * 2 + 4 * 2 + 3, 4 * 8 / 3),
    ],
)
def test_seconds_are_measured_microbatches_times_what_a_run_takes(
    small_pipeline: Path, words: list[str], sample: float, learn: float
) -> None:
    """By a clock that ticks once for each thing measured.

    Evidence of policy and reference is needed beforehand, as a microbatch holds no group. The distance to the reference
    takes the same output again.
    """
    ticks = itertools.count()
    found = measure_epoch(config_of(small_pipeline, *words), PROMPTS, lambda: float(next(ticks)))
    assert found.sample == pytest.approx(sample)
    assert found.score == pytest.approx(2)
    assert found.learn == pytest.approx(learn)
    assert found.peak > 2**20


def test_stages_in_turns_or_shared_out(small_pipeline: Path) -> None:
    time = EpochTime(sample=40.0, score=10.0, learn=6.0, parts={}, peak=0)
    assert time.epoch(config_of(small_pipeline)) == 56
    ray = ["cluster=ray", "cluster.samplers=8", "cluster.reward_actors=1"]
    assert time.epoch(config_of(small_pipeline, *ray)) == 10 + 6, "one reward actor is slower than eight samplers"
    assert time.epoch(config_of(small_pipeline, *ray, "cluster.learners=2")) == 10 + 3
    assert time.epoch(config_of(small_pipeline, *ray, "cluster.max_staleness=1", "cluster.reward_actors=5")) == 6


@pytest.mark.slow
def test_validate_measures_when_asked(
    small_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["experiment=shapes_smoke", "reward=redness", f"model.path={small_pipeline}"]
    assert main(["validate", *words, "--measure"]) == 0
    shown = capsys.readouterr().out
    assert "measured here, one process: an epoch takes" in shown and shown.endswith("ok\n")
    assert not list(tmp_path.iterdir())
    assert main(["validate", *words, "learner.framework=jax", "--measure"]) == 2
    assert "learner.framework=jax: --measure computes by torch" in capsys.readouterr().err
