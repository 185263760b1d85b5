"""`prdp distill`: from chains of a teacher to a folder that plain diffusers, evaluations and runs take."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from prdp.cli import main
from prdp.collaboration.distillation import Distillation
from prdp.commands.distill import LOG_FILE
from prdp.config import ModelConfig
from prdp.diffusion.noise import ImageNoise
from prdp.evaluation.loading import build_evaluated_sampler
from prdp.evaluation.models import find_models
from prdp.evaluation.store import CHAINS
from prdp.image_sets.reading import ImageSet
from prdp.types import PromptBatch

CHAINED = (
    "models=[base]", "prompts=[shapes.train]", "prompts.shapes_train.size=9", "prompts_per_set=5",
    "images_per_prompt=1", "sampler.steps=4", "sampler.guidance_scale=2", "sampler.eta=0",
    "sampler.prompts_per_chunk=3", "chains=true",
)  # fmt: skip
SHORT = ("steps=2", "updates=2", "batch_size=3", "model.device=cpu")
PROMPT = "a small solid red circle"


@pytest.fixture(scope="module")
def chains(small_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chains")
    assert main(["generate", f"model.path={small_pipeline}", *CHAINED, f"output_dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def student(chains: Path, small_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "student"
    words = [f"model.path={small_pipeline}", f"rollouts.path={chains}", "learner.learning_rate=1e-2", *SHORT]
    assert main(["distill", *words, f"output_dir={folder}"]) == 0
    return folder


def ours(folder: Path, base: Path) -> np.ndarray:
    [model] = find_models([str(folder)], ModelConfig(path=str(base)))
    assert model.sampler is not None
    sampler = build_evaluated_sampler(model, model.sampler, "float32", "cpu", None, kl=False)
    rollout = sampler.sample(PromptBatch(0, 0, (PROMPT,), ({},)), 1, 3, trajectory=False)
    np.testing.assert_array_equal(rollout.network_passes, [2.0])
    return rollout.images[0].astype(int)


def theirs(pipeline: Any) -> np.ndarray:
    """Of plain diffusers, with the sampler's noise."""
    noise = ImageNoise(3, 0, np.array([0]), np.array([0]), (4, 8, 8))
    first = torch.from_numpy(noise.draw())
    pipeline.set_progress_bar_config(disable=True)
    draw = "diffusers.schedulers.scheduling_lcm.randn_tensor"
    with patch(draw, lambda *args, **kwargs: torch.from_numpy(noise.draw())):
        images = pipeline(PROMPT, latents=first, num_inference_steps=2, guidance_scale=1.0, output_type="np").images
    return (images[0] * 255).round().astype(int)


def test_plain_diffusers_draws_the_pictures_of_a_student(student: Path, small_pipeline: Path) -> None:
    from diffusers import LCMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(student / "weights", safety_checker=None)
    assert isinstance(pipeline.scheduler, LCMScheduler) and pipeline.scheduler.config.original_inference_steps == 4
    before = load_file(small_pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    after = load_file(student / "weights" / "unet" / "diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert np.abs(ours(student, small_pipeline) - theirs(pipeline)).max() <= 1
    assert pipeline.scheduler.timesteps.tolist() == [999, 499]
    told = json.loads((student / "student.json").read_text())
    assert told["sampler"]["kind"] == "consistency" and told["learned"]["updates"] == 2
    assert [json.loads(line)["update"] for line in (student / LOG_FILE).read_text().splitlines()] == [0, 1]
    assert "LCMScheduler(" in (student / "weights" / "README.md").read_text()


def test_a_student_may_be_a_lora(chains: Path, small_pipeline: Path, tmp_path: Path) -> None:
    from diffusers import LCMScheduler, StableDiffusionPipeline

    words = [f"model.path={small_pipeline}", f"rollouts.path={chains}", "target=consistency", "learner=lora", *SHORT]
    folder = tmp_path / "student"
    assert main(["distill", *words, "learner.learning_rate=0.1", f"output_dir={folder}"]) == 0
    pipeline = StableDiffusionPipeline.from_pretrained(small_pipeline, safety_checker=None)
    without = theirs(with_scheduler(pipeline, LCMScheduler.from_pretrained(folder / "weights" / "scheduler")))
    pipeline.load_lora_weights(folder / "weights")
    assert np.abs(ours(folder, small_pipeline) - theirs(pipeline)).max() <= 1
    assert np.abs(without - theirs(pipeline)).max() > 1
    again = [*words, f"output_dir={folder}"]
    assert main(["distill", *again]) == 2, "a folder that holds a student"


@pytest.mark.parametrize("learner", ["full", "lora"])
def test_a_killed_distillation_ends_as_one_that_was_not(
    learner: str, chains: Path, small_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"model.path={small_pipeline}", f"rollouts.path={chains}", "target=consistency", f"learner={learner}"]
    words += ["learner.learning_rate=1e-2", "learner.ema_decay=0.8", *SHORT[:1], "updates=5", *SHORT[2:]]
    whole, killed = (f"output_dir={tmp_path}/{name}" for name in ("whole", "killed"))
    assert main(["distill", *words, whole]) == 0
    taken = Distillation._step

    def until_the_fourth(self: Distillation, batch: Any) -> Any:
        if self.update == 3:
            raise KeyboardInterrupt
        return taken(self, batch)

    with patch.object(Distillation, "_step", until_the_fourth):
        assert main(["distill", *words, "checkpoint_every=2", killed]) != 0
    assert not (tmp_path / "killed").exists()
    capsys.readouterr()
    assert main(["distill", *words, "batch_size=4", killed]) == 2
    assert "other settings (batch_size=3 there and 4 here)" in capsys.readouterr().err
    assert main(["distill", *words, killed]) == 0
    assert "goes on at update 2 of 5" in capsys.readouterr().out
    for file in sorted((tmp_path / "whole").rglob("*.safetensors")):
        other = load_file(tmp_path / "killed" / file.relative_to(tmp_path / "whole"))
        assert all(torch.equal(value, other[name]) for name, value in load_file(file).items()), file.name
    assert (tmp_path / "whole" / LOG_FILE).read_text() == (tmp_path / "killed" / LOG_FILE).read_text()
    assert not list(tmp_path.glob("*.unfinished"))


def with_scheduler(pipeline: Any, scheduler: Any) -> Any:
    pipeline.scheduler = scheduler
    return pipeline


def test_students_are_evaluated_by_their_own_sampler(
    student: Path, small_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        f"models=[base,one:{student},two:{student},folder:{student}/weights]", f"model.path={small_pipeline}",
        "prompts=[shapes]", "prompts.shapes.size=9", "prompts_per_set=2", "images_per_prompt=1", "rewards=[redness]",
        "sampler.steps=3", "sampler.guidance_scale=2", "samplers.one.steps=1", "samplers.base.steps=2",
    ]  # fmt: skip
    assert main(["evaluate", *words, f"output_dir={tmp_path}/compare"]) == 0
    out = capsys.readouterr().out
    assert "two draws by a sampler of its own: consistency, 2 steps, guidance 1 (samplers.two.steps=..." in out
    spread = {one["model"]: one for one in json.loads((tmp_path / "compare" / "results.json").read_text())["spread"]}
    passes = {name: (one["steps"], one["network_passes"]) for name, one in spread.items()}
    assert passes == {"base": (2, 4.0), "one": (1, 1.0), "two": (2, 2.0), "folder": (4, 4.0)}
    table = (tmp_path / "compare" / "results.md").read_text()
    assert "| reward | model | passes |" in table and "| redness | two | 2 |" in table
    for wrong, told in (
        ("samplers.three.steps=1", "samplers.three: must be one of the models base, one, two, folder"),
        ("samplers.one.stepz=1", "samplers.one.stepz: must be one of kind, steps"),
        ("samplers.one.steps=many", "samplers.one: Value 'many'"),
        ("samplers.one.steps=5", "sampler.steps=5: must be at most sampler.original_inference_steps=4"),
    ):
        assert main(["evaluate", *words, wrong, f"output_dir={tmp_path}/other"]) == 2
        assert told in capsys.readouterr().err


def test_what_a_student_cannot_learn_from_is_named(
    chains: Path, small_pipeline: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: str, model: Path = small_pipeline, path: Path = chains) -> str:
        given = [f"model.path={model}", f"rollouts.path={path}", *SHORT, *words, f"output_dir={tmp_path}/student"]
        assert main(["distill", *given]) == 2
        assert not (tmp_path / "student").exists()
        return capsys.readouterr().err

    assert "steps=5: must be at most 4, the steps of the teacher's chains" in refused("steps=5")
    assert "target.name=gan: must be one of endpoint, consistency" in refused("target.name=gan")
    assert "learner.framework=jax: must be torch" in refused("learner.framework=jax")
    assert "learner.warmup_updates=9: must be below updates=2" in refused("learner.warmup_updates=9")
    file = model_folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_out.bias"] += 1
    save_file(tensors, file, {"format": "pt"})
    told = refused(model=model_folder)
    assert f"rollouts.path={chains}: its chains were drawn by base" in told and "and the teacher is" in told
    another = Path(shutil.copytree(chains, tmp_path / "set"))
    manifest = json.loads((another / "set.json").read_text())

    def edited(**changes: Any) -> Path:
        from prdp.image_sets.manifest import Manifest

        facts = {**{key: value for key, value in manifest.items() if key not in ("format", "digest")}, **changes}
        document = {"format": manifest["format"], "digest": Manifest(**facts).digest, **facts}
        (another / "set.json").write_text(json.dumps(document))
        return another

    plain = {key: value for key, value in manifest["latents"].items() if key != "chains"}
    assert "keeps no chains; prdp generate makes a set with them" in refused(path=edited(latents=plain))
    leading = {**manifest["sampler"], "timestep_spacing": "leading"}
    told = refused(path=edited(sampler=leading))
    assert "timesteps 751, 501, 251, 1" in told and "asks at 999, 749, 499, 249" in told
    edited()
    chunk = ImageSet.open(another).entries[0].chunk
    (another / chunk / CHAINS).unlink()
    assert "files are missing" in refused(path=another)


def test_chains_are_kept_of_samplers_without_noise_and_again_of_the_same_teacher(
    chains: Path, small_pipeline: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ImageSet.open(chains)
    chain = one.chains(one.entries[4], 1)
    assert chain.shape == (1, 5, 4, 8, 8) and chain[0, 0].std() == pytest.approx(1.0, abs=0.2)
    np.testing.assert_array_equal(chain[:, -1], one.latents(one.entries[4], 1))
    words = [f"model.path={small_pipeline}", *CHAINED, f"output_dir={chains}"]
    assert main(["generate", *words, "sampler.eta=1"]) == 2
    assert "chains=true: needs a sampler that draws no noise" in capsys.readouterr().err
    file = model_folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_out.bias"] += 1
    save_file(tensors, file, {"format": "pt"})
    assert main(["generate", f"model.path={model_folder}", *words[1:]]) == 2
    assert "holds images that were made otherwise; these differ: model" in capsys.readouterr().err
