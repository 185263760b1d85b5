"""LoRA files that do not fit are all told before the first model draws."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from expert_files import write_expert
from safetensors.torch import save_file

from prdp.cli import main
from prdp.config import ModelConfig
from prdp.diffusion.adapter_tensors import LORA_FILE
from prdp.evaluation.lora_checks import lora_problems
from prdp.evaluation.models import find_models
from prdp.experts.lora_files import HEADER

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
TEXT = "text_model.encoder.layers.0"


def factors(layer: str, down: tuple[int, ...], up: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {f"{layer}.lora_A.weight": torch.ones(down), f"{layer}.lora_B.weight": torch.ones(up)}


def kohya(layer: str, down: tuple[int, ...], up: tuple[int, ...]) -> dict[str, torch.Tensor]:
    name = layer.replace(".", "_")
    return {f"{name}.lora_down.weight": torch.ones(down), f"{name}.lora_up.weight": torch.ones(up)}


def written(file: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, object] | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), file, None if header is None else {"format": "pt", HEADER: json.dumps(header)})
    return file


@pytest.fixture
def fits(small_pipeline: Path, tmp_path: Path) -> Path:
    (tmp_path / "fits").mkdir()
    return write_expert(tmp_path / "fits", small_pipeline, 0, target_modules=["to_q"])


def misfits(folder: Path) -> dict[Path, str]:
    """Files -> what is told of them."""
    to_q = f"unet.{BLOCK}.attn1.to_q"
    peft = folder / "peft"
    written(peft / "adapter_model.safetensors", factors(f"base_model.model.{BLOCK}.attn1.to_q", (2, 16), (16, 2)))
    (peft / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 3}))
    nan = factors(to_q, (2, 16), (16, 2))
    nan[f"{to_q}.lora_B.weight"][0, 0] = float("nan")
    settings = {"unet.r": 4, "unet.lora_alpha": 4, "unet.target_modules": [f"{BLOCK}.attn1.to_q"]}
    return {
        written(folder / "wide.safetensors", factors(to_q, (2, 320), (320, 2))):
            f"{to_q}.lora_A.weight: has shape [2, 320], expected [2, 16]",
        written(folder / "deep.safetensors", factors("unet.down_blocks.7.conv_in", (2, 4), (4, 2))):
            "UNet2DConditionModel has no linear layer or convolution 'down_blocks.7.conv_in'",
        written(folder / "ranks.safetensors", factors(to_q, (2, 16), (16, 3))):
            f"{to_q}.lora_B.weight: has shape [16, 3], expected [16, 2]",
        written(folder / "settings.safetensors", factors(to_q, (2, 16), (16, 2)), settings):
            f"{to_q}: has rank 2, and its settings tell 4",
        written(folder / "text.safetensors", factors(f"text_encoder.{TEXT}.mlp.fc1", (2, 768), (3072, 2))):
            f"text_encoder.{TEXT}.mlp.fc1.lora_A.weight: has shape [2, 768], expected [2, 16]",
        written(folder / "kohya.safetensors", kohya(f"lora_te_{TEXT}.self_attn.q_proj", (2, 16), (768, 2))):
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight: has shape [768, 2], expected [16, 2]",
        peft / "adapter_model.safetensors": f"{to_q}: has rank 2, and its settings tell 3",
        written(folder / "nan.safetensors", nan): f"{to_q}.lora_B.weight: must hold finite numbers",
        written(folder / "flow.safetensors", factors("transformer.x_embedder", (2, 16), (16, 2))):
            "it is of a transformer, which other families have",
    }  # fmt: skip


def test_all_that_do_not_fit_are_told_before_anything_is_drawn(
    fits: Path, small_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = misfits(tmp_path / "odd")
    (tmp_path / "odd" / "cut.safetensors").write_bytes(fits.read_bytes()[:300])
    expected[tmp_path / "odd" / "cut.safetensors"] = "cannot be read as safetensors"
    entries = ",".join(f"m{number}:{file}" for number, file in enumerate([fits, *expected]))
    words = ["prompts=[shapes]", "rewards=[redness]", f"model.path={small_pipeline}", f"output_dir={tmp_path}/out"]
    assert main(["evaluate", f"models=[base,{entries}]", *words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "models: " in line]
    for line, (file, told) in zip(lines, expected.items(), strict=True):
        assert f"models: {file}: " in line and told in line, line
    assert not (tmp_path / "out").exists()


def test_what_the_loader_takes_passes(fits: Path, small_pipeline: Path, tmp_path: Path) -> None:
    """Text encoders alone, old names of diffusers beside new ones, and DoRA, which diffusers computes itself."""
    to_q, to_v = (f"unet.{BLOCK}.attn1.to_{name}" for name in "qv")
    new = factors(to_q, (2, 16), (16, 2))
    old = {f"{to_v}.lora.down.weight": torch.ones(3, 16), f"{to_v}.lora.up.weight": torch.ones(16, 3)}
    files = [
        fits,
        written(tmp_path / "a" / LORA_FILE, factors(f"text_encoder.{TEXT}.self_attn.q_proj", (2, 16), (16, 2))),
        written(tmp_path / "b" / LORA_FILE, new | old),
        written(tmp_path / "c" / LORA_FILE, new | {f"{to_q}.lora_magnitude_vector": torch.ones(16)}),
    ]
    models = find_models([str(file) for file in files], ModelConfig(path=str(small_pipeline), device="cpu"))
    assert [model.kind for model in models] == ["lora"] * 4 and lora_problems(models) == []
