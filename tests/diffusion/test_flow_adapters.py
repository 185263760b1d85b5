"""LoRA files of the transformer families: out to diffusers, in from diffusers, PEFT and kohya."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from narrow_transformers import NARROW, TEXT_TOKENS
from policy_checks import moved
from safetensors.torch import load_file, save_file

from prdp.config import LearnerConfig, ModelConfig
from prdp.diffusion import build_policy, family_of
from prdp.diffusion.adapter_files import AdaptedLayer
from prdp.diffusion.adapter_tensors import LORA_FILE
from prdp.evaluation.loading import apply_lora
from prdp.experts.lora_files import read_layers
from prdp.experts.writing import write_lora
from prdp.support.errors import StartError

LORA = LearnerConfig(lora_rank=4, lora_alpha=6.0, lora_targets=["to_q", "to_out.0"])
FROZEN = LearnerConfig(mode="frozen")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Of pipelines, with an adapter of theirs in the folder `weights`."""
    found = {name: tmp_path_factory.mktemp(name) for name in NARROW}
    for name, folder in found.items():
        NARROW[name]().save_pretrained(folder)
        policy: Any = build_policy(model(name, folder), LORA, seed=0, keep_reference=False)
        policy.weights.bind(moved(policy.weights.export(0), 0.3))
        policy.save(folder / "weights")
    return found


def model(family: str, folder: Path, **changes: Any) -> ModelConfig:
    settings = {"max_sequence_length": TEXT_TOKENS[family], "height": 32, "width": 32, "device": "cpu"}
    return ModelConfig(**{"family": family, "path": str(folder), **settings, **changes})


def output(policy: Any, network: Any = None) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        return policy.output(torch.randn(1, 4, 8, 8), torch.tensor([0.5]), policy.encode(["a star"]), 1.0, network)


def of_kohya(folder: Path) -> Path:
    """A file of FLUX as kohya's trainers write it: queries, keys and values in one layer, alphas beside the ranks.

    Without the first layers of single blocks: diffusers splits them at the width of the released models alone.
    """
    torch.manual_seed(2)
    sizes = {
        "double_blocks_0_img_attn_qkv": (32, 96), "double_blocks_0_txt_mlp_0": (32, 128),
        "double_blocks_0_img_attn_proj": (32, 32), "single_blocks_0_linear2": (32 + 128, 32),
    }  # fmt: skip
    tensors = {}
    for name, (inside, outside) in sizes.items():
        tensors[f"lora_unet_{name}.lora_down.weight"] = torch.randn(4, inside)
        tensors[f"lora_unet_{name}.lora_up.weight"] = torch.randn(outside, 4)
        tensors[f"lora_unet_{name}.alpha"] = torch.tensor(2.0)
    save_file(tensors, folder / "kohya.safetensors")
    return folder / "kohya.safetensors"


@pytest.mark.parametrize(
    ("family", "form"),
    [*((name, form) for name in NARROW for form in ("diffusers", "peft", "kohya"))],
)
def test_files_of_all_formats_are_loaded_whole(
    folders: Mapping[str, Path], tmp_path: Path, family: str, form: str
) -> None:
    """Outputs are those of diffusers' own pipeline with the file that was exported, or with kohya's."""
    file = folders[family] / "weights" / LORA_FILE
    if (family, form) == ("flux", "kohya"):
        loaded = file = of_kohya(tmp_path)
    else:
        loaded = file
        if form != "diffusers":
            layers = {
                name: AdaptedLayer(one.down, one.scale * one.up, 1.0) for name, one in read_layers("", file).items()
            }
            file = write_lora(tmp_path, layers, form, {})
    pipeline: Any = type(NARROW[family]()).from_pretrained(folders[family])
    start: Any = build_policy(model(family, folders[family]), FROZEN, seed=0, keep_reference=False)
    before = output(start)
    pipeline.load_lora_weights(loaded.parent, weight_name=loaded.name)
    expected = output(start, pipeline.transformer)
    adapted = model(family, folders[family], adapters=[str(file)])
    family_of(adapted).check(adapted)
    torch.testing.assert_close(
        output(build_policy(adapted, FROZEN, seed=0, keep_reference=False)), expected, rtol=0, atol=1e-4
    )
    apply_lora(start, file)
    torch.testing.assert_close(output(start), expected, rtol=0, atol=1e-4)
    assert (expected - before).abs().max() > 1e-2


def test_files_of_others_are_refused(folders: Mapping[str, Path], tmp_path: Path) -> None:
    of = {name: str(folder / "weights") for name, folder in folders.items()}
    save_file(
        {f"lora_unet_input_blocks_4_1_proj_in.lora_{part}.weight": torch.ones(2, 2) for part in ("down", "up")},
        tmp_path / "xl.safetensors",
    )
    save_file(
        {f"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_{part}.weight": torch.ones(2, 2) for part in ("down", "up")},
        tmp_path / "sd3.safetensors",
    )
    for family, file, message in (
        ("z_image", of["flux"], r"transformer\.\S+lora_A\.weight: ZImageTransformer2DModel has no linear layer or"),
        ("flux", of["z_image"], r"FluxTransformer2DModel has no linear layer or convolution 'context_refiner\.0"),
        ("flux", str(tmp_path / "xl.safetensors"), r"lora_unet_input_blocks_4_1_proj_in"),
        ("stable_diffusion_3", str(tmp_path / "sd3.safetensors"), r"lora_unet_joint_blocks_0_x_block_attn_qkv"),
    ):
        chosen = model(family, folders[family], adapters=[file])
        with pytest.raises(StartError, match=message):
            family_of(chosen).check(chosen)


TO_Q = "lora_unet_layers_0_attention_to_q"
QKV = "lora_unet_double_blocks_0_img_attn_qkv"
JOINT = "lora_unet_joint_blocks_0_x_block_attn_proj"
TEXT = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("z_image", {f"{TO_Q}.lora_down.weight": (0, 32), f"{TO_Q}.lora_up.weight": (32, 0)}, "which no factor has"),
        ("z_image", {f"{TEXT}.lora_down.weight": (2, 8), f"{TEXT}.lora_up.weight": (8, 2)}, r"lora_te1_\S+: adapters"),
        ("flux", {"hello": (2, 2)}, "hello: diffusers leaves it out"),
        ("flux", {f"{QKV}.lora_up.weight": (95, 2)}, r"diffusers makes no LoRA of its tensors: \w+"),
        ("flux", {f"{QKV}.lora_down.weight": None, f"{QKV}.lora_up.weight": None}, "holds no factor of a LoRA"),
        ("flux", {f"{QKV}.lora_down.weight": ()}, r"lora_down\.weight: has shape \[\], which no factor has"),
        ("stable_diffusion_3", {f"{JOINT}.alpha": (3,)}, r"attn_proj\.alpha: must be one finite number"),
        ("stable_diffusion_3", {f"{JOINT}.lora_up.weight": None}, r"up \(lora_B\), is missing"),
        ("stable_diffusion_3", {"hello": (2, 2)}, "hello: is no tensor of a LoRA of Stable Diffusion 3's transformer"),
        ("stable_diffusion_3", {f"{TEXT}.lora_down.weight": (2, 8)}, "lora_te1_text.*: adapters of text encoders"),
    ],
)
def test_no_tensor_is_left_out_or_fails_unnamed(
    folders: Mapping[str, Path], tmp_path: Path, family: str, changes: dict[str, tuple[int, ...] | None], message: str
) -> None:
    sizes = {"z_image": (TO_Q, 32, 32), "flux": (QKV, 32, 96), "stable_diffusion_3": (JOINT, 16, 16)}
    name, inside, outside = sizes[family]
    tensors = {
        f"{name}.lora_down.weight": torch.ones(2, inside), f"{name}.lora_up.weight": torch.ones(outside, 2),
        f"{name}.alpha": torch.tensor(1.0),
    }  # fmt: skip
    for key, shape in changes.items():
        tensors.pop(key, None)
        tensors |= {} if shape is None else {key: torch.ones(shape)}
    save_file(tensors, tmp_path / "harmed.safetensors")
    chosen = model(family, folders[family], adapters=[str(tmp_path / "harmed.safetensors")])
    with pytest.raises(StartError, match=message):
        family_of(chosen).check(chosen)


def test_one_that_goes_on_learning_has_to_be_described(folders: Mapping[str, Path]) -> None:
    for family, folder in folders.items():
        chosen, file = model(family, folder), str(folder / "weights")
        fitting = LearnerConfig(lora_rank=4, lora_alpha=6.0, lora_targets=["to_q", "to_out.0"], init_adapter=file)
        assert family_of(chosen).learner_problems(chosen, fitting) == []
        (problem,) = family_of(chosen).learner_problems(chosen, LearnerConfig(
            lora_rank=8, lora_alpha=6.0, lora_targets=["to_q", "to_out.0"], init_adapter=file
        ))  # fmt: skip
        assert "has rank 4: learner.lora_rank=8 must be the same; set 4" in problem


def test_exported_names_are_those_that_others_read(folders: Mapping[str, Path]) -> None:
    """With the component before the layer, and peft's names of the factors, as ComfyUI and diffusers want them."""
    for folder in folders.values():
        names = list(load_file(folder / "weights" / LORA_FILE))
        assert names and all(re.fullmatch(r"transformer\.\S+\.lora_[AB]\.weight", name) for name in names)
