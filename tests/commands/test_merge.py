"""`prdp merge`: what it takes, writes, tells and refuses."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from expert_files import write_expert
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from prdp.cli import main
from prdp.config import LearnerConfig, ModelConfig
from prdp.configuration.typed import typed, write_config
from prdp.diffusion import build_policy
from prdp.diffusion.adapter_tensors import LORA_FILE, PEFT_FILE
from prdp.evaluation.loading import apply_lora
from prdp.experts.lora_files import read_layers
from prdp.support.errors import StartError


@pytest.fixture(scope="module")
def sweep(small_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of a sweep with their exported weights; the second adapts one more kind of layer."""
    folder = tmp_path_factory.mktemp("sweep")
    for number, targets in enumerate((["to_q", "to_k"], ["to_q", "to_k", "conv1"])):
        run = folder / str(number)
        write_expert(run / "weights", small_pipeline, number, target_modules=targets, r=2 + number)
        config = typed(
            {
                "prompts": {"train": {"_target_": "a.b"}, "heldout": {"_target_": "a.b"}},
                "reward": {"_target_": "a.b"},
                "output_dir": str(run),
                "seed": number,
                "model": {"path": str(small_pipeline)},
            }
        )
        write_config(config, run / "config.yaml")
    return folder


def merged(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["merge", *words]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["merge", *words]) == 2
    return capsys.readouterr().err


def pictures(folder: Path, files: list[Path], weights: list[float]) -> np.ndarray:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    names = [f"e{number}" for number in range(len(files))]
    for name, file in zip(names, files, strict=True):
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    pipeline.set_adapters(names, weights)
    generator = torch.Generator().manual_seed(0)
    result = pipeline(["red", "blue"], num_inference_steps=3, generator=generator, output_type="np")
    return np.asarray(result.images)


def test_a_sweep_becomes_one_file_that_plain_diffusers_draws_the_same_with(
    sweep: Path, small_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "merged"
    out = merged(capsys, f"models=[{sweep}]", "weights=[3,1]", f"output_dir={folder}")
    assert "seed=0: zero in " in out and "layers that others adapt, such as unet." in out
    assert "0.75 x seed=0" in out and "rank 3 to 5" in out
    files = [sweep / name / "weights" / LORA_FILE for name in "01"]
    expected = pictures(small_pipeline, files, [0.75, 0.25])
    np.testing.assert_allclose(pictures(small_pipeline, [folder / LORA_FILE], [1.0]), expected, rtol=0, atol=1e-5)
    assert np.abs(pictures(small_pipeline, files, [0.0, 0.0]) - expected).max() > 1e-3
    with safe_open(folder / LORA_FILE, "pt") as opened:
        header = json.loads(opened.metadata()["prdp_merge"])
    assert header["method"] == "mean_delta" and header["relative_error"] == 0
    assert [one["weight"] for one in header["sources"]] == [0.75, 0.25]
    assert header["sources"][0]["sha256"] == hashlib.sha256(files[0].read_bytes()).hexdigest()
    assert json.loads((folder / "merge.json").read_text())["sources"] == header["sources"]
    assert {one.name for one in tmp_path.iterdir()} == {"merged"}


@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_other_formats_are_evaluated_too(
    sweep: Path, small_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    folder = tmp_path / form
    merged(capsys, f"models=[{sweep}]", f"format={form}", f"output_dir={folder}")
    model, learner = ModelConfig(path=str(small_pipeline)), LearnerConfig(mode="frozen")
    policy: Any = build_policy(model, learner, seed=0, keep_reference=True)
    file = folder / (PEFT_FILE if form == "peft" else LORA_FILE)
    apply_lora(policy, file)
    layers = read_layers("", file)
    for name, layer in layers.items():
        module = policy.network.get_submodule(name.removeprefix("unet."))
        scaled = module.scaling["applied"] * module.lora_B["applied"].weight
        torch.testing.assert_close(scaled, layer.scale * layer.up, rtol=1e-6, atol=0)
    assert sum(hasattr(part, "lora_A") for part in policy.network.modules()) == len(layers)


@pytest.mark.parametrize(
    ("layer", "width", "message"),
    [("mid_block.attentions.0.proj_in", 99, r"has shape \[2, 99\], expected"), ("odd.one", 8, "of another model")],
)
def test_a_file_of_another_base_is_told_by_its_tensor(
    layer: str, width: int, message: str, small_pipeline: Path, tmp_path: Path
) -> None:
    tensors = {"lora_A": torch.ones(2, width), "lora_B": torch.ones(16, 2)}
    save_file({f"unet.{layer}.{name}.weight": value for name, value in tensors.items()}, tmp_path / LORA_FILE)
    base, frozen = ModelConfig(path=str(small_pipeline)), LearnerConfig(mode="frozen")
    policy = build_policy(base, frozen, seed=0, keep_reference=False)
    with pytest.raises(StartError, match=rf"^models: {tmp_path}/.*: unet\.{layer}\.lora_A\.weight: .*{message}"):
        apply_lora(policy, tmp_path / LORA_FILE)


def test_a_smaller_rank_tells_what_it_loses(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (f"models=[a:{sweep}/0,b:{sweep}/1/weights]", "merge=svd", "merge.rank=1")
    out = merged(capsys, *words, f"output_dir={tmp_path}/svd")
    told = json.loads((tmp_path / "svd" / "merge.json").read_text())
    assert 0.1 < told["relative_error"] < 1 and told["rank"] == 1
    assert f"relative error {told['relative_error']:.2e} of all deltas together" in out
    assert len(told["layers"]) == sum("rank 1, relative error" in line for line in out.splitlines())
    merged(capsys, *words[:1], "merge=ties", "merge.rank=null", f"output_dir={tmp_path}/ties")
    ties = json.loads((tmp_path / "ties" / "merge.json").read_text())
    assert ties["relative_error"] < 1e-5 and max(one["rank"] for one in ties["layers"].values()) > 5
    first = merged(capsys, *words[:1], "merge=dare", "merge.seed=3", f"output_dir={tmp_path}/d1")
    again = merged(capsys, *words[:1], "merge=dare", "merge.seed=3", f"output_dir={tmp_path}/d2")
    assert first.replace("d1", "d2") == again
    tensors = [load_file(tmp_path / name / LORA_FILE) for name in ("d1", "d2")]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(value.equal(tensors[1][name]) for name, value in tensors[0].items())


def test_more_rank_than_a_layer_can_have_is_told_with_what_takes_less(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = f"models=[{','.join(f'e{number}:{sweep}/1' for number in range(4))}]"
    out = merged(capsys, models, f"output_dir={tmp_path}/wide")
    [rank] = re.findall(r"\(12 of 8\): merge=svd merge\.rank=(\d+) loses nothing", out)
    out = merged(capsys, models, "merge=svd", f"merge.rank={rank}", f"output_dir={tmp_path}/narrow")
    assert "(12 of 8)" not in out
    assert json.loads((tmp_path / "narrow" / "merge.json").read_text())["relative_error"] < 1e-6


def test_what_is_refused_before_anything_is_written(
    sweep: Path, small_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*words: str) -> str:
        return refused(capsys, *words, f"output_dir={tmp_path}/out")

    one, both = f"models=[{sweep}/0]", f"models=[{sweep}]"
    assert "which models?" in told()
    count = "weights=[1.0]: has 1 numbers: must be one for each of the 2 models (seed=0, seed=1)"
    assert count in told(both, "weights=[1]")
    assert "weights=[1.0, -1.0]: must be numbers above 0" in told(both, "weights=[1,-1]")
    assert "scale=0: must be a finite number above 0" in told(one, "scale=0")
    for method in (["merge=mean_delta"], ["merge=svd", "merge.rank=1"]):
        assert "scale=1e+39: layer unet." in told(one, "scale=1e39", *method)
    assert "format=onnx: must be one of diffusers, kohya, peft" in told(one, "format=onnx")
    assert "merge=tie: there is no such merge; available: dare, mean_delta, svd, ties." in told(one, "merge=tie")
    assert "merge.density=0: must be a number above 0 and at most 1" in told(one, "merge=ties", "merge.density=0")
    assert "merge.rank=null: must be an integer, at least 1" in told(one, "merge=svd", "merge.rank=null")
    assert "merge.rank=4: mean_delta has no such knob, it takes none" in told(one, "merge.rank=4")
    assert "merge.seed=1.5: must be an integer, at least 0" in told(one, "merge=dare", "merge.seed=1.5")
    assert "two are called " in told(f"models=[{sweep}/0,{sweep}/0]")
    assert f"{small_pipeline} is a whole model: experts are LoRAs" in told(f"models=[{small_pipeline}]")
    assert "there is no" in told(f"models=[{sweep}/7]")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept.txt").write_text("mine")
    assert f"output_dir={tmp_path}/out: is not empty; name another folder" in told(one)
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["kept.txt"]


def test_runs_of_other_bases_are_told(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], small_pipeline: Path
) -> None:
    other = tmp_path / "other"
    write_expert(other / "weights", small_pipeline, 5, target_modules=["to_q"])
    text = (sweep / "0" / "config.yaml").read_text().replace(str(small_pipeline), "/models/elsewhere")
    assert "adapters: []" in text
    text = text.replace("adapters: []", "adapters: [/loras/style]")
    (other / "config.yaml").write_text(text)
    out = merged(capsys, f"models=[first:{sweep}/0,{other}]", f"output_dir={tmp_path}/out")
    told = f"other was trained from /models/elsewhere and first from {small_pipeline}: a mean of deltas of different"
    assert told in out
    assert "other was trained beside model.adapters /loras/style, which are no part of it" in out


def test_help_tells_methods_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["merge", "--help"])
    out = capsys.readouterr().out
    assert "dare, mean_delta, svd, ties" in out and "prdp merge --help merge.ties" in out
    assert "format  (one of diffusers, kohya, peft; default diffusers)" in merged(capsys, "--help", "format")
    assert "density: 0.5 # share" in merged(capsys, "--help", "merge.ties")
