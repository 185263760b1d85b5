"""LoRA files of the transformer families: out to diffusers, in from diffusers, PEFT and kohya."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import FluxLoraLoaderMixin
from narrow_transformers import NARROW, TEXT_TOKENS
from policy_checks import moved
from safetensors.torch import load_file, save_file

from prdp.config import LearnerConfig, ModelConfig
from prdp.diffusion import build_policy, family_of
from prdp.diffusion.adapter_files import AdaptedLayer
from prdp.diffusion.adapter_tensors import LORA_FILE
from prdp.diffusion.fused_factors import split_factors
from prdp.evaluation.loading import apply_lora
from prdp.experts.lora_files import diffusers_state, read_layers
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


AUTHORS = {
    "flux": {
        "double_blocks.0.img_attn.qkv": (32, 96), "double_blocks.0.txt_mlp.0": (32, 128),
        "double_blocks.0.img_attn.proj": (32, 32), "single_blocks.0.linear2": (32 + 128, 32),
    },
    "z_image": {
        "layers.0.attention.qkv": (32, 96), "noise_refiner.0.attention.out": (32, 32),
        "context_refiner.0.feed_forward.w1": (32, 85),
    },
}  # fmt: skip
"""Layers of the narrow transformers under the names of the models' authors -> columns and rows."""


def of_authors(family: str, name: Callable[[str], str], parts: tuple[str, str], file: Path) -> Path:
    """A LoRA of these layers, which are called by `name`; diffusers reads the names of kohya's trainers alone."""
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for layer, (columns, rows) in AUTHORS[family].items():
        tensors[f"{name(layer)}.{parts[0]}.weight"] = torch.randn(4, columns, generator=generator)
        tensors[f"{name(layer)}.{parts[1]}.weight"] = torch.randn(rows, 4, generator=generator)
        tensors[f"{name(layer)}.alpha"] = torch.tensor(2.0)
    save_file(tensors, file)
    return file


@pytest.mark.parametrize("family", AUTHORS)
def test_the_authors_names_are_read_as_diffusers_reads_kohyas(
    folders: Mapping[str, Path], tmp_path: Path, family: str
) -> None:
    down_up = ("lora_down", "lora_up")
    kohya = of_authors(family, lambda name: f"lora_unet_{name.replace('.', '_')}", down_up, tmp_path / "k.safetensors")
    dotted = tmp_path / "a.safetensors"
    for beginning, parts in (
        ("base_model.model.", ("lora_A", "lora_B")), ("transformer.", ("lora_A.default", "lora_B.default")),
        ("transformer.", down_up), ("diffusion_model.", down_up), ("diffusion_model.", ("lora_A", "lora_B")),
    ):  # fmt: skip
        of_authors(family, lambda name, beginning=beginning: f"{beginning}{name}", parts, dotted)  # type: ignore[misc]
        one, other = read_layers("", dotted), read_layers("", kohya)
        assert one.keys() == other.keys()
        for name, layer in one.items():
            expected = other[name].scale * other[name].up @ other[name].down
            torch.testing.assert_close(layer.scale * layer.up @ layer.down, expected)
    pipeline: Any = type(NARROW[family]()).from_pretrained(folders[family])
    start: Any = build_policy(model(family, folders[family]), FROZEN, seed=0, keep_reference=False)
    before = output(start)
    pipeline.load_lora_weights(tmp_path, weight_name=kohya.name)
    expected = output(start, pipeline.transformer)
    adapted = model(family, folders[family], adapters=[str(dotted)])
    found = output(build_policy(adapted, FROZEN, seed=0, keep_reference=False))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    apply_lora(start, dotted)
    torch.testing.assert_close(output(start), expected, rtol=0, atol=1e-4)
    assert (expected - before).abs().max() > 1e-2
    pipeline.unload_lora_weights()
    pipeline.load_lora_weights(diffusers_state(str(dotted)))  # as the program beside an export does
    torch.testing.assert_close(output(start, pipeline.transformer), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("diagonal", [False, True])
def test_flux_of_the_released_width_is_split_as_diffusers_splits_it(diagonal: bool) -> None:
    """Queries, keys, values and the layer beside them, of four times as many rows; and the last layer's halves."""
    sizes = {"single_blocks.3.linear1": (3072, 7 * 3072), "final_layer.adaLN_modulation.1": (3072, 2 * 3072)}
    dotted, underscored = {}, {}
    for name, (columns, rows) in sizes.items():
        down, up = torch.randn(4, columns), torch.randn(rows, 4)
        if diagonal:
            for number, part in enumerate(up.split([3072, 3072, 3072, rows - 3 * 3072] if rows > 9216 else [rows])):
                part[:, [one for one in range(4) if one != number]] = 0.0
        for ours, theirs, value in (("lora_A", "lora_down", down), ("lora_B", "lora_up", up)):
            dotted[f"diffusion_model.{name}.{ours}.weight"] = value
            underscored[f"lora_unet_{name.replace('.', '_')}.{theirs}.weight"] = value
    expected = FluxLoraLoaderMixin.lora_state_dict(underscored)
    found = split_factors("", dotted)
    # diffusers forgets the component before layers outside of blocks.
    layers = {name.removeprefix("transformer.").partition(".lora_")[0]: name for name in expected}
    assert found.keys() == layers.keys() and len(found) == 5
    for layer, ((down, up), scale, _) in found.items():
        prefix = layers[layer].partition(".lora_")[0]
        vector = torch.randn(3072)
        wanted = expected[f"{prefix}.lora_B.weight"] @ (expected[f"{prefix}.lora_A.weight"] @ vector)
        torch.testing.assert_close(scale * up @ (down @ vector), wanted, rtol=1e-5, atol=1e-3)


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


ATTENTION = "diffusion_model.layers.0.attention"
TO_Q = "lora_unet_layers_0_attention_to_q"
QKV = "lora_unet_double_blocks_0_img_attn_qkv"
SINGLE = "lora_unet_single_blocks_0_linear1"
JOINT = "lora_unet_joint_blocks_0_x_block_attn_proj"
TEXT = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("z_image", {f"{TO_Q}.lora_down.weight": (0, 32), f"{TO_Q}.lora_up.weight": (32, 0)}, "which no factor has"),
        ("z_image", {f"{TEXT}.lora_down.weight": (2, 8), f"{TEXT}.lora_up.weight": (8, 2)}, r"lora_te1_\S+: adapters"),
        ("z_image", {f"{ATTENTION}.qkv.lora_A.weight": (2, 32)}, rf"{TO_Q}\.\S+: is no tensor of a LoRA of Z-Image's"),
        (
            "z_image",
            {
                **dict.fromkeys((f"{TO_Q}.alpha", f"{TO_Q}.lora_down.weight", f"{TO_Q}.lora_up.weight")),
                **{f"{ATTENTION}.qkv.lora_A.weight": (2, 32), f"{ATTENTION}.qkv.lora_B.weight": (96, 2)},
                **{f"{ATTENTION}.to_q.lora_A.weight": (2, 32), f"{ATTENTION}.to_q.lora_B.weight": (32, 2)},
            },
            r"to_q\.lora_A\.weight and \S+qkv\.lora_A\.weight are both of layer layers\.0\.attention\.to_q",
        ),
        ("flux", {"hello": (2, 2)}, "hello: diffusers leaves it out"),
        ("flux", {f"{QKV}.lora_up.weight": (95, 2)}, r"lora_up\.weight: has 95 rows, expected a multiple of 3"),
        (
            "flux",
            {f"{SINGLE}.lora_down.weight": (2, 32), f"{SINGLE}.lora_up.weight": (224, 2)},
            r"linear1\.lora_up\.weight: has 224 rows, expected 21504: of a network 3072 wide",
        ),
        ("flux", {f"{QKV}.lora_down.weight": None, f"{QKV}.lora_up.weight": None}, "holds no factor of a LoRA"),
        ("flux", {f"{QKV}.lora_down.weight": ()}, r"lora_down\.weight: has shape \[\], which no factor has"),
        ("stable_diffusion_3", {f"{JOINT}.alpha": (3,)}, r"attn_proj\.alpha: must be one finite number"),
        ("stable_diffusion_3", {f"{JOINT}.lora_up.weight": None}, r"up \(lora_B\), is missing"),
        ("stable_diffusion_3", {"hello": (2, 2)}, "hello: is no tensor of a LoRA of Stable Diffusion 3's transformer"),
        ("stable_diffusion_3", {f"{TEXT}.lora_down.weight": (2, 8)}, r"of its tensors: .lora_te1_\S+up\.weight"),
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
