"""Files of adapters that are not computed whole are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_exports import SAMPLER, kohya, policy_of
from safetensors.torch import load_file, save_file

from prdp.config import ModelConfig
from prdp.configuration.preconditions import model_problems
from prdp.diffusion import family_of
from prdp.diffusion.adapter_tensors import LORA_FILE, PEFT_CONFIG, PEFT_FILE
from prdp.support.errors import StartError


def harmed(style: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    state = load_file(style)
    change(state)
    save_file(state, folder / "harmed.safetensors")
    return folder / "harmed.safetensors"


def no_such_layer(state: dict[str, torch.Tensor]) -> None:
    state["unet.down_blocks.7.to_q.lora_A.weight"] = torch.ones(4, 8)


def wrong_shape(state: dict[str, torch.Tensor]) -> None:
    name = next(name for name in state if "to_q.lora_A" in name)
    state[name] = torch.ones(4, 5)


def half_a_layer(state: dict[str, torch.Tensor]) -> None:
    del state[next(name for name in state if "to_q.lora_B" in name)]


def text_encoder(state: dict[str, torch.Tensor]) -> None:
    state["text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"] = torch.ones(4, 16)


def no_lora(state: dict[str, torch.Tensor]) -> None:
    state["unet.conv_in.bias"] = torch.ones(8)


def of_a_transformer(state: dict[str, torch.Tensor]) -> None:
    state.clear()
    state["transformer.blocks.0.attn.to_q.lora_A.weight"] = torch.ones(4, 8)


def not_finite(state: dict[str, torch.Tensor]) -> None:
    state[next(iter(state))].fill_(float("nan"))


def dora(state: dict[str, torch.Tensor]) -> None:
    state["unet.mid_block.dora_scale"] = torch.ones(1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (no_such_layer, r"down_blocks\.7\.to_q\.lora_A\.weight: UNet2DConditionModel has no .* 'down_blocks\.7\.to_q'"),
        (wrong_shape, r"to_q\.lora_A\.weight: has shape \[4, 5\], expected \[4, 8\]"),
        (half_a_layer, r"to_q\.lora_A\.weight: its other factor, up \(lora_B\), is missing"),
        (text_encoder, r"q_proj\.lora_A\.weight: its other factor, up \(lora_B\), is missing"),
        (no_lora, r"unet\.conv_in\.bias: is no factor of a LoRA of the unet"),
        (of_a_transformer, r"is no factor of a LoRA of the unet; it is of a transformer, which other families have"),
        (not_finite, r"lora_A\.weight: must hold finite numbers"),
        (dora, r"unet\.mid_block\.dora_scale: DoRA is not computed"),
    ],
)
def test_no_part_of_a_file_is_left_out(
    folder: Path, style: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], told: str
) -> None:
    file = harmed(style, tmp_path, change)
    model = ModelConfig(path=str(folder), adapters=[str(style), str(file)])
    with pytest.raises(StartError, match=rf"^model\.adapters: {file}: .*{told}"):
        family_of(model).check(model)


def test_kohyas_files_are_read_whole_or_refused(folder: Path, style: Path, tmp_path: Path) -> None:
    file = kohya(style, tmp_path, lambda layer: 1.0 if "attn1" in layer else 3.0)
    model = ModelConfig(path=str(folder), adapters=[str(file)])
    found = policy_of(ModelConfig(path=str(folder))).adapter("model.adapters", str(file)).layers
    # diffusers would take one of these alphas for all layers of attention.
    assert {name: one.alpha for name, one in found.items()} == {name: 1.0 if "attn1" in name else 3.0 for name in found}
    assert len({one.alpha for one in found.values()}) == 2
    state = load_file(file)
    save_file({**state, "lora_unet_mid_block_gone.lora_down.weight": torch.ones(1, 1)}, file)
    with pytest.raises(StartError, match=r"diffusers makes no LoRA of its tensors: .*lora_unet_mid_block_gone"):
        family_of(model).check(model)
    save_file({**state, "lora_te_text_model.alpha": torch.ones(())}, file)
    with pytest.raises(StartError, match=r"lora_te_text_model\.alpha"):
        family_of(model).check(model)


def test_what_is_no_safetensors_file_is_never_opened(folder: Path, style: Path, tmp_path: Path) -> None:
    def told(path: Path) -> str:
        model = ModelConfig(path=str(folder), adapters=[str(path)])
        (problem,) = model_problems(model, SAMPLER)
        return problem

    torch.save({}, tmp_path / "pytorch_lora_weights.bin")
    assert told(tmp_path).endswith("pytorch_lora_weights.bin is a pickle, which may run code and is never opened")
    assert "must be a .safetensors file" in told(tmp_path / "pytorch_lora_weights.bin")
    (tmp_path / "pytorch_lora_weights.bin").rename(tmp_path / "renamed.safetensors")
    assert "cannot be read as safetensors" in told(tmp_path / "renamed.safetensors")
    assert "there is no such file or folder" in told(tmp_path / "absent.safetensors")
    assert "holds neither" in told(folder)
    (tmp_path / "run" / "weights").mkdir(parents=True)
    (tmp_path / "run" / "weights" / LORA_FILE).write_bytes(style.read_bytes())
    assert told(tmp_path / "run").endswith("adapter_model.safetensors; take its folder weights")
    (tmp_path / PEFT_FILE).write_bytes(style.read_bytes())
    assert f"{PEFT_CONFIG} is missing" in told(tmp_path)
    for content, problem in (
        ({"peft_type": "LOHA"}, "peft_type=LOHA: must be LORA"),
        ({"peft_type": "LORA", "r": 4}, "lora_alpha is missing"),
        ({"peft_type": "LORA", "r": 4, "lora_alpha": 4, "init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
    ):
        (tmp_path / PEFT_CONFIG).write_text(json.dumps(content))
        assert problem in told(tmp_path)
