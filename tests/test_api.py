"""`prdp.api`: the same numbers as the commands give, by a loop of one's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from prdp import api
from prdp.config import TrainConfig
from prdp.prompts.stream import fixed_prompts
from prdp.support.errors import ConfigError, StartError
from prdp.tracking.jsonl import read_metrics


def smoke(folder: Path, *overrides: str) -> TrainConfig:
    return api.compose("experiment=shapes_smoke", "learner.schedule=linear", f"output_dir={folder}", *overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    return api.train(smoke(tmp_path_factory.mktemp("api") / "run"))


def test_a_loop_of_ones_own_learns_what_a_run_learns(run: Path, tmp_path: Path) -> None:
    config = smoke(tmp_path / "none")
    parts = api.build(config)
    losses = []
    for epoch in range(config.epochs):
        parts.sampler.load_weights(parts.learner.weights())
        prompts = parts.prompts.next(config.prompts_per_epoch, epoch)
        rollout = parts.sampler.sample(prompts, config.images_per_prompt, config.seed)
        scores = api.score(parts.reward, rollout.images, rollout.image_prompts, rollout.image_metadata)
        losses.append(parts.learner.update(rollout.scored(*scores))["loss"])
    assert losses == [row["loss"] for row in read_metrics(run) if "loss" in row]
    assert not (tmp_path / "none").exists(), "nothing is written"


def test_a_run_is_loaded_with_its_own_sampler_and_draws_what_it_was_judged_by(run: Path, tmp_path: Path) -> None:
    config = smoke(tmp_path / "none")
    source = api.build(config).heldout
    heldout = fixed_prompts(source, config.evaluation.final_prompts, config.evaluation.seed)
    model = api.load_model(run)
    assert model.settings == config.sampler
    images = model.draw(heldout.texts, config.evaluation.images_per_prompt, config.evaluation.seed)
    scores, parts = api.score(api.load_reward("shapes_judge"), images, heldout.texts, heldout.metadata)
    last = [row["eval/score"] for row in read_metrics(run) if "eval/score" in row][-1]
    assert scores.mean() == pytest.approx(last, abs=1e-9)
    assert "colour" in parts or "color" in parts


def test_base_differs_from_the_run_and_takes_a_sampler(run: Path) -> None:
    prompts = ["a large red circle on a white background"]
    base = api.load_model("base", "model=shapes", "sampler.steps=2", "sampler.guidance_scale=1")
    assert (base.settings.steps, base.settings.guidance_scale) == (2, 1.0)
    drawn = base.draw(prompts, 3)
    assert drawn.shape == (3, 32, 32, 3) and drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn, base.draw(prompts, 3))
    trained = api.load_model(run, "sampler.steps=2", "sampler.guidance_scale=1").draw(prompts, 3)
    assert np.abs(trained.astype(int) - drawn.astype(int)).max() > 0


def test_refusals(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="epochs=-1"):
        api.compose("epochs=-1")
    with pytest.raises(ConfigError, match=r"checkpoint\.resume"):
        api.train(smoke(run))
    for word in ("cluster=ray", "cluster.learners=2"):
        with pytest.raises(ConfigError, match=r"cluster\.(kind=ray|learners=2): api.build makes the parts"):
            api.build(smoke(tmp_path / "none", word))
    with pytest.raises(StartError, match="nothing"):
        api.load_model(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="learner: load_model takes"):
        api.load_model(run, "learner.lora_rank=2")
    with pytest.raises(ConfigError, match="rednes"):
        api.load_reward("rednes")
    with pytest.raises(ValueError, match="prompts is empty"):
        api.load_model(run).draw([])
    images = np.zeros((3, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="3 images of 2 prompts"):
        api.score(api.load_reward("redness"), images, ["a", "b"])
    with pytest.raises(ValueError, match="1 metadata of 3 prompts"):
        api.score(api.load_reward("redness"), images, ["a", "b", "c"], [{}])
    with pytest.raises(TypeError, match=r"words one by one.*got \['seed=1'\]"):
        api.compose(["seed=1"])  # type: ignore[arg-type]


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, prdp.api; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
