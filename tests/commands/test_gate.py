"""`prdp gate`: from experts and a set of images to a folder that is evaluated as one model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from expert_files import write_expert
from safetensors.torch import load_file, save_file

from prdp.cli import main
from prdp.commands.gate import LOG_FILE
from prdp.config import LearnerConfig, ModelConfig
from prdp.configuration.typed import typed, write_config
from prdp.diffusion import build_policy
from prdp.diffusion.adapter_tensors import LORA_FILE
from prdp.evaluation.lora_checks import lora_problems
from prdp.evaluation.models import find_models
from prdp.evaluation.store import read_scores
from prdp.experts.gate_files import TENSORS, read_gated
from prdp.experts.gate_training import GateTraining
from prdp.experts.lora_files import read_layers
from prdp.image_sets.best_images import all_images, best_images, shuffled
from prdp.image_sets.reading import ImageSet
from prdp.support.errors import StartError

SET = (
    "models=[base]", "prompts=[shapes.train]", "prompts.shapes_train.size=9", "prompts_per_set=5",
    "images_per_prompt=3", "rewards=[shapes_judge]", "sampler.steps=2", "sampler.guidance_scale=2",
    "sampler.prompts_per_chunk=2",
)  # fmt: skip


TARGET = {"_target_": "a.b"}


@pytest.fixture(scope="module")
def image_set(small_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    assert main(["generate", f"model.path={small_pipeline}", *SET, f"output_dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def experts(small_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    targets = [["to_q"], ["to_q", "to_v"]]
    return [
        write_expert(tmp_path_factory.mktemp("expert"), small_pipeline, number, target_modules=one)
        for number, one in enumerate(targets)
    ]


def words(experts: list[Path], image_set: Path, pipeline: Path) -> list[str]:
    named = ",".join(f"e{number}:{file}" for number, file in enumerate(experts))
    return ["gate", f"models=[{named}]", f"rollouts.path={image_set}", f"model.path={pipeline}", "model.device=cpu"]


TO_Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def of_another_base() -> dict[str, torch.Tensor]:
    return {f"{TO_Q}.lora_A.weight": torch.ones(2, 320), f"{TO_Q}.lora_B.weight": torch.ones(320, 2)}


def test_gates_learn_from_a_set_and_are_one_model(
    image_set: Path, experts: list[Path], small_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words(experts, image_set, small_pipeline)
    options = [
        "aspects=[shapes_judge.color,shapes_judge]", "gate.steps=4", "gate.batch_size=4", "gate.frozen_average=true",
        "gate.learning_rate=0.1",
    ]  # fmt: skip
    assert main([*given, *options, f"output_dir={tmp_path}/gated"]) == 0
    out = capsys.readouterr().out
    assert "2 experts" in out and "used e0 0." in out and "warning: guidance" in out
    assert "e0: zero in" in out and "layers that others adapt, such as unet." in out
    folder = tmp_path / "gated"
    log = [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]
    assert [one["step"] for one in log] == [0, 1, 2, 3]
    learned = json.loads((folder / "gate.json").read_text())["learned"]
    assert learned["sets"] == {str(image_set): ImageSet.open(image_set).manifest.digest} and learned["steps"] == 4
    [model] = find_models([str(folder)], None)
    assert model.kind == "gated" and model.model.path == str(small_pipeline)
    assert any(value.abs().max() > 0 for value in load_file(folder / TENSORS).values())
    average = read_layers("", folder / "frozen_average" / LORA_FILE)
    assert average.keys() == read_layers("", experts[1]).keys()
    base, frozen = ModelConfig(path=str(small_pipeline)), LearnerConfig(mode="frozen")
    policy = build_policy(base, frozen, seed=0, keep_reference=False)
    mixture = read_gated(folder).put_into(policy.weights.network)
    assert mixture.names == ["e0", "e1"]
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    save_file(of_another_base(), other / "experts" / "0" / LORA_FILE)
    [told] = lora_problems(find_models([str(other)], None))
    assert f"{other}/experts/0/{LORA_FILE}: layer {TO_Q}: is for a layer of shape [320, 320], not [16, 16]" in told
    assert lora_problems([model]) == []
    assert main(["export", str(folder)]) == 2
    assert "gate.frozen_average=true writes one LoRA" in capsys.readouterr().err


def test_killed_gates_end_as_those_that_were_not(
    image_set: Path, experts: list[Path], small_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "aspects=[shapes_judge.color,shapes_judge]", "gate.steps=5", "gate.batch_size=4", "gate.learning_rate=0.1",
        "gate.frozen_average=true",
    ]  # fmt: skip
    given = [*words(experts, image_set, small_pipeline), *options]
    whole, killed = (f"output_dir={tmp_path}/{name}" for name in ("whole", "killed"))
    assert main([*given, whole]) == 0
    taken = GateTraining._take

    def until_the_fourth(self: GateTraining, batch: Any) -> Any:
        if self.step == 3:
            raise KeyboardInterrupt
        return taken(self, batch)

    with patch.object(GateTraining, "_take", until_the_fourth):
        assert main([*given, "checkpoint_every=2", killed]) != 0
    assert not (tmp_path / "killed").exists()
    capsys.readouterr()

    def refused(*more: str, files: list[Path] = experts) -> str:
        assert main([*words(files, image_set, small_pipeline), *options, *more, killed]) == 2
        return capsys.readouterr().err

    assert "other settings (gate.batch_size=4 there and 3 here)" in refused("gate.batch_size=3")
    assert "seed=0 there and 1 here" in refused("seed=1")
    assert "(models=['e0 (SHA-256 " in refused(files=experts[::-1])
    other = refused("aspects=[shapes_judge.color]")
    assert "aspects=['shapes_judge.color', 'shapes_judge'] there and ['shapes_judge.color'] here" in other
    assert "rollouts.path=10 images (digest " in other and " there and 5 images (digest " in other
    assert main([*given, killed]) == 0
    assert "goes on at step 2 of 5" in capsys.readouterr().out
    for file in sorted((tmp_path / "whole").rglob("*.safetensors")):
        again = load_file(tmp_path / "killed" / file.relative_to(tmp_path / "whole"))
        assert all(torch.equal(value, again[name]) for name, value in load_file(file).items()), file.name
    assert (tmp_path / "whole" / LOG_FILE).read_text() == (tmp_path / "killed" / LOG_FILE).read_text()
    assert not list(tmp_path.glob("*.unfinished"))


def test_the_best_image_of_each_prompt(image_set: Path) -> None:
    one = ImageSet.open(image_set)
    chosen = best_images([one], "shapes_judge.color")
    assert len(chosen) == len(one.entries) == 5 and len(all_images([one])) == 15
    for entry, best in zip(one.entries, chosen, strict=True):
        found = read_scores(image_set / entry.chunk, "shapes_judge")
        assert found is not None
        scores = found[1].sub_scores["color"][entry.row * 3 : entry.row * 3 + 3]
        assert best.entry is entry and best.number == list(scores).index(scores.max())
        np.testing.assert_array_equal(best.latents(), one.latents(entry, 3)[best.number])
    batches = shuffled(all_images([one]), 4, 0)
    first = [next(batches) for _ in range(8)]
    numbers = [(each.entry.prompt, each.entry.row, each.number) for batch in first for each in batch]
    assert len(set(numbers[:15])) == 15 and len(set(numbers[15:30])) == 15 and numbers[:15] != numbers[15:30]
    for aspect, told in (
        ("judge", r"was scored by shapes_judge"),
        ("shapes_judge.colour", r"has the sub-scores .*Did you mean 'color'"),
    ):
        with pytest.raises(StartError, match=told):
            best_images([one], aspect)


def test_prompts_that_an_aspect_does_not_apply_to_are_left_out(
    image_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ImageSet.open(image_set)
    values = {number: [float("nan")] * 3 for number in range(5)} | {1: [0.2, 0.7, 0.7], 3: [0.5, float("nan"), 0.1]}
    flat = iter([values[0] + values[1], values[2] + values[3], values[4]])
    monkeypatch.setattr("prdp.image_sets.best_images._scores", lambda *_: np.array(next(flat)))
    chosen = best_images([one], "any")
    assert [(each.entry.prompt, each.number) for each in chosen] == [
        (one.entries[1].prompt, 1), (one.entries[3].prompt, 0),
    ]  # fmt: skip
    monkeypatch.setattr("prdp.image_sets.best_images._scores", lambda *_: np.full(6, np.nan))
    with pytest.raises(StartError, match="aspects: any applies to no prompt"):
        best_images([one], "any")


def test_keys_of_the_model_hold_where_a_run_tells_the_base(
    image_set: Path, experts: list[Path], small_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, expert in enumerate(experts):
        run = tmp_path / "runs" / str(number)
        (run / "weights").mkdir(parents=True)
        (run / "weights" / LORA_FILE).write_bytes(expert.read_bytes())
        plain = {"prompts": {"train": TARGET, "heldout": TARGET}, "reward": TARGET, "seed": number}
        model = {"path": str(small_pipeline), "device": "cpu"}
        write_config(typed({**plain, "model": model, "output_dir": str(run)}), run / "config.yaml")
    given = ["gate", f"models=[{tmp_path}/runs]", f"rollouts.path={image_set}", "gate.steps=1", "gate.batch_size=2"]
    assert main([*given, "model.height=16", "model.width=16", f"output_dir={tmp_path}/out"]) == 2
    told = capsys.readouterr().err
    assert f"the shape 4 x 8 x 8, and those of model.path={small_pipeline} 4 x 16 x 16" in told
    assert main([*given, "model.dtype=bfloat16", f"output_dir={tmp_path}/out"]) == 0
    base = read_gated(tmp_path / "out").model
    assert (base.path, base.dtype, base.device) == (str(small_pipeline), "bfloat16", "cpu")


def test_what_is_refused_before_anything_is_learned(
    image_set: Path, experts: list[Path], small_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*more: str, given: list[Path] = experts) -> str:
        assert main([*words(given, image_set, small_pipeline), *more, f"output_dir={tmp_path}/out"]) == 2
        return capsys.readouterr().err

    assert "holds one expert; a gate weighs at least two" in told(given=experts[:1])
    assert "gate.share=head: must be one of layer, block" in told("gate.share=head")
    assert "gate.steps=0: must be at least 1" in told("gate.steps=0")
    assert f"{tmp_path} is no set of images" in told(f"rollouts.path={tmp_path}")
    assert "rollouts.path=[]: must be a folder, or a list of folders" in told("rollouts.path=[]")
    assert "its latents have the shape 4 x 8 x 8" in told("model.height=16", "model.width=16")
    assert "aspects: x: " in told("aspects=[x]")
    others = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for file in others:
        save_file(of_another_base(), file)
    with patch("prdp.diffusion.build_policy", side_effect=AssertionError("nothing is loaded")):
        lines = [line for line in told(given=others).splitlines() if "models: " in line]
    for line, file in zip(lines, others, strict=True):
        assert f"models: {file}: layer {TO_Q}: is for a layer of shape [320, 320], not [16, 16]" in line
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        main(["gate", "--help"])
    assert "gate.frozen_average=true" in capsys.readouterr().out
