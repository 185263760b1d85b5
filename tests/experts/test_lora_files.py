"""Files read by names alone, against what diffusers and peft bind to a network."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from prdp.diffusion.adapter_files import AdaptedLayer, read_adapter
from prdp.diffusion.adapter_tensors import LORA_FILE, PEFT_CONFIG, PEFT_FILE
from prdp.diffusion.original_layers import STABLE_DIFFUSION_3_LAYERS, original_tensors
from prdp.experts.lora_files import read_expert, read_layers
from prdp.experts.writing import check_format, write_lora
from prdp.support.errors import ConfigError, StartError

FORMATS = ("diffusers", "kohya", "peft")
UNET_LAYERS = {
    "unet.conv_in": (4, 3), "unet.down_blocks.0.resnets.1.conv1": (6, 3), "unet.mid_block.attentions.0.proj_in": (6, 1),
    "unet.down_blocks.0.downsamplers.0.conv": (5, 3), "unet.up_blocks.1.resnets.0.conv_shortcut": (4, 1),
    "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0": (6, 0),
    "unet.mid_block.attentions.0.transformer_blocks.1.ff.net.0.proj": (6, 0), "unet.time_embedding.linear_2": (3, 0),
    "unet.down_blocks.2.resnets.0.time_emb_proj": (4, 0),
}  # fmt: skip
TEXT_LAYERS = {
    f"{encoder}.text_model.encoder.layers.1.{name}": (4, 0)
    for encoder in ("text_encoder", "text_encoder_2")
    for name in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1")
}
Z_IMAGE_LAYERS = {
    "transformer.layers.0.attention.to_q": (4, 0), "transformer.context_refiner.1.feed_forward.w1": (4, 0),
    "transformer.layers.2.attention.to_out.0": (5, 0), "transformer.noise_refiner.0.adaLN_modulation.0": (4, 0),
}  # fmt: skip


def random_layers(sizes: dict[str, tuple[int, int]]) -> dict[str, AdaptedLayer]:
    """Width and kernel (0 of a linear layer) -> factors of different ranks."""
    generator = torch.Generator().manual_seed(0)
    layers = {}
    for number, (name, (width, kernel)) in enumerate(sizes.items()):
        rank, inside = 1 + number % 3, (kernel, kernel) if kernel else ()
        down = torch.randn(rank, width, *inside, generator=generator)
        layers[name] = AdaptedLayer(down, torch.randn(width + 1, rank, *(1 for _ in inside), generator=generator), 1.0)
    return layers


def assert_same(found: dict[str, AdaptedLayer], expected: dict[str, AdaptedLayer]) -> None:
    assert found.keys() == expected.keys()
    for name, layer in expected.items():
        assert found[name].down.equal(layer.down)
        torch.testing.assert_close(found[name].scale * found[name].up, layer.scale * layer.up, rtol=1e-6, atol=0)


def bound(file: Path, network: Any) -> dict[str, AdaptedLayer]:
    """What diffusers itself makes of a file."""
    adapter = read_adapter("models", str(file), network, StableDiffusionPipeline, "unet")
    return {f"unet.{name}": layer for name, layer in adapter.layers.items()}


def test_factors_and_scales_are_those_that_diffusers_binds(
    unet: Callable[[], Any], experts: list[Path], tmp_path: Path
) -> None:
    network = unet()
    for file in experts:
        expected = bound(file, network)
        assert_same(read_layers("", file), expected)
    old = {
        re.sub(r"to_([qkv])\.lora_A", r"processor.to_\1_lora.down", name): value
        for name, value in load_file(experts[0]).items()
        if re.search(r"to_[qkv]\.lora_A", name)
    } | {
        re.sub(r"to_([qkv])\.lora_B", r"to_\1.lora.up", name): value
        for name, value in load_file(experts[0]).items()
        if re.search(r"to_[qkv]\.lora_B", name)
    }
    save_file(old, tmp_path / "old.safetensors")
    expected = {name: layer for name, layer in bound(experts[0], network).items() if "to_out" not in name}
    found = read_layers("", tmp_path / "old.safetensors")
    assert_same(found, {name: AdaptedLayer(layer.down, layer.up, 1.0) for name, layer in expected.items()})


def test_a_folder_of_peft_is_what_peft_computes(unet: Callable[[], Any], tmp_path: Path) -> None:
    network = unet()
    config = LoraConfig(
        r=2, lora_alpha=7, target_modules=["to_q", "conv2"], init_lora_weights=False, rank_pattern={"conv2": 3},
        alpha_pattern={"attn2.to_q": 1}, use_rslora=True,
    )  # fmt: skip
    get_peft_model(network, config).save_pretrained(tmp_path)
    found = read_expert("models", str(tmp_path)).layers
    modules = {name: part for name, part in network.named_modules() if hasattr(part, "lora_A")}
    assert found.keys() == {f"unet.{name}" for name in modules} and len(found) > 10
    for name, part in modules.items():
        assert found[f"unet.{name}"].scale == pytest.approx(part.scaling["default"])
        assert found[f"unet.{name}"].down.equal(part.lora_A["default"].weight)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("sizes", [UNET_LAYERS, UNET_LAYERS | TEXT_LAYERS, Z_IMAGE_LAYERS])
def test_formats_are_read_back_whole(form: str, sizes: dict[str, tuple[int, int]], tmp_path: Path) -> None:
    layers = random_layers(sizes)
    file = write_lora(tmp_path, layers, form, {"method": "x"})
    assert_same(read_layers("", file), layers)
    names = [name for one in [file, *tmp_path.glob("text_encoder*/*.safetensors")] for name in load_file(one)]
    start = {"diffusers": ("unet.", "transformer.", "text_"), "kohya": ("lora_",), "peft": ("base_model.model.",)}
    assert all(name.startswith(start[form]) for name in names)
    assert len(names) == (3 if form == "kohya" else 2) * len(layers)


def test_formats_lead_into_each_other_on_a_network(
    unet: Callable[[], Any], experts: list[Path], output: Callable[[Any], torch.Tensor], tmp_path: Path
) -> None:
    """diffusers -> kohya -> peft -> diffusers, each loaded by the library that it is for."""
    layers = read_layers("", experts[1])
    plain = {name: AdaptedLayer(one.down, one.scale * one.up, 1.0) for name, one in layers.items()}
    expected, file = None, experts[1]
    for form in ("kohya", "peft", "diffusers"):
        folder = tmp_path / form
        folder.mkdir()
        file = write_lora(folder, plain if form == "kohya" else read_layers("", file), form, {})
        network = unet()
        if form == "peft":
            from peft import PeftModel

            network = PeftModel.from_pretrained(network, folder)
        else:
            state, *alphas, metadata = StableDiffusionPipeline.lora_state_dict(
                folder, weight_name=LORA_FILE, return_lora_metadata=True
            )
            StableDiffusionPipeline.load_lora_into_unet(state, *alphas, network, metadata=metadata)
        expected = output(network) if expected is None else expected
        torch.testing.assert_close(output(network), expected, rtol=0, atol=1e-6)
    assert expected is not None and (expected - output(unet())).abs().max() > 1e-2


def test_sdxl_by_diffusers_and_by_stability_ais_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16, 16), layers_per_block=2, cross_attention_dim=16, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=2,
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time",
        addition_time_embed_dim=4, projection_class_embeddings_input_dim=40,
    )  # fmt: skip
    adapted = ["to_q", "conv1", "add_embedding.linear_1", "downsamplers.0.conv", "conv_shortcut"]
    network.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=adapted, init_lora_weights=False))
    from peft.utils import get_peft_model_state_dict

    state = get_peft_model_state_dict(network)
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, unet_lora_layers=state, weight_name=LORA_FILE)
    found = read_layers("", tmp_path / LORA_FILE)
    assert len(found) == len(state) / 2
    assert found["unet.add_embedding.linear_1"].down.equal(state["add_embedding.linear_1.lora_A.weight"])
    block = "down_blocks.1.attentions.0.transformer_blocks.0"
    sai = {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": f"{block}.attn1.to_q",
        "lora_unet_input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
        "lora_unet_output_blocks_1_0_in_layers_2": "up_blocks.0.resnets.1.conv1",
        "lora_unet_output_blocks_4_0_skip_connection": "up_blocks.1.resnets.1.conv_shortcut",
        "lora_unet_label_emb_0_0": "add_embedding.linear_1",
    }  # fmt: skip
    tensors = {}
    for kohya, layer in sai.items():
        tensors[f"{kohya}.lora_down.weight"] = state[f"{layer}.lora_A.weight"]
        tensors[f"{kohya}.lora_up.weight"] = state[f"{layer}.lora_B.weight"]
        tensors[f"{kohya}.alpha"] = torch.tensor(1.0)
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "sai.safetensors")
    again = read_layers("", tmp_path / "sai.safetensors")
    assert again.keys() == {f"unet.{layer}" for layer in sai.values()}
    for layer in sai.values():
        assert again[f"unet.{layer}"].down.equal(state[f"{layer}.lora_A.weight"])
        assert again[f"unet.{layer}"].scale == 0.5


def test_flux_of_diffusers_and_of_kohya(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = FluxTransformer2DModel(
            num_layers=1, num_single_layers=1, attention_head_dim=4, num_attention_heads=2, joint_attention_dim=8,
            pooled_projection_dim=8, in_channels=4, axes_dims_rope=(2, 1, 1),
        )  # fmt: skip
    names = [name for name, part in network.named_modules() if isinstance(part, torch.nn.Linear)]
    layers = random_layers({f"transformer.{name}": (4, 0) for name in names})
    (tmp_path / "a").mkdir()
    assert_same(read_layers("", write_lora(tmp_path / "a", layers, "diffusers", {})), layers)
    with pytest.raises(ConfigError, match=r"format=kohya: layer transformer\..* has no name of kohya's"):
        check_format(layers, "kohya")
    down, up = torch.randn(2, 8), torch.randn(24, 2)
    fused = "lora_unet_double_blocks_0_img_attn_qkv"
    save_file(
        {f"{fused}.lora_down.weight": down, f"{fused}.lora_up.weight": up, f"{fused}.alpha": torch.tensor(1.0)},
        tmp_path / "kohya.safetensors",
    )
    found = read_layers("", tmp_path / "kohya.safetensors")
    for number, part in enumerate("qkv"):
        layer = found[f"transformer.transformer_blocks.0.attn.to_{part}"]
        torch.testing.assert_close(layer.scale * layer.up @ layer.down, 0.5 * up[8 * number : 8 * number + 8] @ down)


@pytest.mark.parametrize("ranks", [(2,), (1, 2, 3)])
def test_kohyas_sd3_is_what_comfyui_adds_to_the_authors_weights(ranks: tuple[int, ...], tmp_path: Path) -> None:
    """alpha / rank * up down on the authors' layers, which diffusers' own converter then reads as its own layers."""
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
    from narrow_transformers import narrow_sd3

    network = narrow_sd3().transformer
    layers = adapted_layers(network, ranks, lambda name: "proj_out" not in name and not name.endswith("attn.to_v"))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    file = write_lora(tmp_path, layers, "kohya", {})
    kohya = load_file(file)
    original = original_tensors(STABLE_DIFFUSION_3_LAYERS, state)
    for name, value in original.items():
        key = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
        if f"{key}.alpha" in kohya and name.endswith(".weight"):
            down, up = (kohya.pop(f"{key}.lora_{part}.weight") for part in ("down", "up"))
            delta = up.flatten(1) @ down.flatten(1)
            value += kohya.pop(f"{key}.alpha") / down.shape[0] * delta.reshape(value.shape)
    assert not kohya, "every matrix binds"
    found = convert_sd3_transformer_checkpoint_to_diffusers(original)
    for name, one in layers.items():
        weight = f"{name.removeprefix('transformer.')}.weight"
        state[weight] += (one.up.flatten(1) @ one.down.flatten(1)).reshape(state[weight].shape)
    assert found.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5, msg=name)


def test_kohyas_sd3_with_one_down_for_queries_keys_and_values(tmp_path: Path) -> None:
    name, down, up = "lora_unet_joint_blocks_3_x_block_attn_qkv", torch.randn(2, 8), torch.randn(24, 2)
    text = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    tensors = {f"{text}.lora_{part}.weight": torch.ones(2, 2) for part in ("down", "up")}
    tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "kohya.safetensors")
    found = read_layers("", tmp_path / "kohya.safetensors")
    assert "text_encoder.text_model.encoder.layers.0.self_attn.q_proj" in found and len(found) == 4
    for number, part in enumerate("qkv"):
        layer = found[f"transformer.transformer_blocks.3.attn.to_{part}"]
        assert layer.scale == 0.5 and layer.down.equal(down)
        assert layer.up.equal(up[8 * number : 8 * number + 8])
    plain = {key: AdaptedLayer(one.down, one.scale * one.up, 1.0) for key, one in found.items() if "attn" in key}
    plain = {key: one for key, one in plain.items() if key.startswith("transformer.")}
    again = load_file(write_lora(tmp_path, plain, "kohya", {}, "stable_diffusion_3"))
    assert again[f"{name}.lora_down.weight"].equal(down), "the rank is that of the file"
    with pytest.raises(ConfigError, match="8 wide, and the others are named alike in Stable Diffusion 3 and in FLUX"):
        check_format(plain, "kohya")


@pytest.mark.parametrize("ranks", [(2,), (1, 2, 3)])
def test_kohyas_flux_is_read_back_by_diffusers(ranks: tuple[int, ...], tmp_path: Path) -> None:
    with torch.device("meta"):
        network = FluxTransformer2DModel(num_layers=1, num_single_layers=1)
    layers = adapted_layers(network, ranks, lambda name: "blocks" in name and not name.endswith("proj_mlp"))
    found = read_layers("", write_lora(tmp_path, layers, "kohya", {}))
    for name, one in layers.items():
        vector = torch.randn(one.down.shape[1])
        expected = one.up @ (one.down @ vector)
        got = found[name].scale * found[name].up @ (found[name].down @ vector)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)
    assert {name for name in found if name not in layers} == {"transformer.single_transformer_blocks.0.proj_mlp"}
    with pytest.raises(ConfigError, match=r"transformer\.x_embedder has no name of kohya's that is read back"):
        check_format({**layers, "transformer.x_embedder": next(iter(layers.values()))}, "kohya")


def adapted_layers(network: Any, ranks: tuple[int, ...], chosen: Callable[[str], bool]) -> dict[str, AdaptedLayer]:
    """Random factors of the linear layers and convolutions of a transformer."""
    generator = torch.Generator().manual_seed(0)
    layers = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and chosen(name):
            rank, (rows, *columns) = ranks[len(layers) % len(ranks)], module.weight.shape
            down = torch.randn(rank, *columns, generator=generator)
            up = torch.randn(rows, rank, *(1 for _ in columns[1:]), generator=generator)
            layers[f"transformer.{name}"] = AdaptedLayer(down, up, 1.0)
    return layers


Change = Callable[[dict[str, torch.Tensor]], Any]
LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop(f"{LAYER}.lora_B.weight"), rf"{LAYER}: its factor up \(lora_B\) is missing"),
        (lambda state: state.update({"unet.conv_in.bias": torch.ones(8)}), r"unet\.conv_in\.bias: is no factor"),
        (
            lambda state: state.update({f"{LAYER}.lora_A.weight": torch.full((4, 8), float("nan"))}),
            r"must hold finite numbers",
        ),
        (
            lambda state: state.update({f"{LAYER}.lora_A.weight": torch.ones(3, 8)}),
            rf"{LAYER}: down has shape \[3, 8\] and up",
        ),
        (lambda state: state.update({f"{LAYER}.dora_scale": torch.ones(1)}), "DoRA is not computed"),
        (lambda state: state.update({"x.hada_w1_a": torch.ones(1)}), "x.hada_w1_a: only plain LoRA is computed"),
        (
            lambda state: state.update({f"{LAYER}.lora.down.weight": torch.ones(4, 8)}),
            "are the same factor of one layer",
        ),
    ],
)
def test_no_tensor_is_left_out(experts: list[Path], tmp_path: Path, change: Change, told: str) -> None:
    state = load_file(experts[0])
    change(state)
    file = tmp_path / "harmed.safetensors"
    save_file(state, file)
    with pytest.raises(StartError, match=rf"models: {file}: .*{told}"):
        read_expert("models", str(file))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["lora_unet_joint_blocks_0_x_block_attn_qkv"], r"qkv\.lora_up\.weight: has shape \[1, 1\].* in 3 equal parts"),
        (["lora_unet_joint_blocks_0_gone"], r"blocks_0_gone\.lora_\S+: is no tensor of a LoRA of Stable Diffusion 3's"),
        (["lora_unet_mid_block_attentions_0_proj_in", "unet.conv_in"], "is no tensor of a LoRA of kohya's"),
        (["lora_unet_single_blocks_0_linear1"], r"linear1\.lora_up\.weight: has 1 rows, expected 21504"),
        (["lora_unet_double_blocks_0_gone"], "diffusers makes no LoRA of its tensors"),
        (["base_model.model.conv_in"], f"call it {PEFT_FILE}, with its {PEFT_CONFIG} beside it"),
        (["conv_in"], "conv_in.lora_(down|up).weight: is no factor"),
    ],
)
def test_names_that_nobody_converts(names: list[str], told: str, tmp_path: Path) -> None:
    tensors = {f"{name}.lora_{part}.weight": torch.ones(1, 1) for name in names for part in ("down", "up")}
    save_file(tensors, tmp_path / "k.safetensors")
    with pytest.raises(StartError, match=told):
        read_layers("here", tmp_path / "k.safetensors")


def test_settings_have_to_agree_with_the_tensors(experts: list[Path], tmp_path: Path) -> None:
    tensors = {f"base_model.model.mid_block.x.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    save_file(tensors, tmp_path / PEFT_FILE)

    def told(**settings: Any) -> str:
        (tmp_path / PEFT_CONFIG).write_text(json.dumps({"peft_type": "LORA", **settings}))
        with pytest.raises(StartError) as caught:
            read_expert("models", str(tmp_path))
        return str(caught.value)

    assert "unet.mid_block.x: has rank 2, and its settings tell 3" in told(r=3, lora_alpha=3)
    assert "its settings tell lora_alpha=-1" in told(r=2, lora_alpha=-1)
    assert "its settings tell a rank_pattern that is none" in told(r=2, lora_alpha=2, rank_pattern={"(": 2})
    tensors = {f"base_model.model.text_model.encoder.x.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    save_file(tensors, tmp_path / PEFT_FILE)
    assert "is of a text encoder; a file of PEFT does not tell which" in told(r=2, lora_alpha=2)
    (tmp_path / "pickle").mkdir()
    torch.save({}, tmp_path / "pickle" / "pytorch_lora_weights.bin")
    with pytest.raises(StartError, match=r"is a pickle, which may run code and is never opened"):
        read_expert("models", str(tmp_path / "pickle"))
    shutil.copy(tmp_path / "pickle" / "pytorch_lora_weights.bin", tmp_path / "renamed.safetensors")
    with pytest.raises(StartError, match="cannot be read as safetensors"):
        read_expert("models", str(tmp_path / "renamed.safetensors"))


def test_plain_diffusers_loads_text_encoders_of_several_ranks(small_pipeline: Path, tmp_path: Path) -> None:
    ranks = {"q_proj": 2, "k_proj": 2, "v_proj": 3, "out_proj": 5}
    begin = "text_model.encoder.layers.0.self_attn."
    layers = {
        f"text_encoder.{begin}{name}": AdaptedLayer(torch.randn(rank, 16), torch.randn(16, rank), 1.0)
        for name, rank in ranks.items()
    }
    file = write_lora(tmp_path, layers, "diffusers", {})
    pipeline = StableDiffusionPipeline.from_pretrained(small_pipeline, safety_checker=None)
    pipeline.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="merged")
    modules = {name.removeprefix("text_model."): one for name, one in pipeline.text_encoder.named_modules()}
    for name in ranks:
        found: Any = modules[f"{begin.removeprefix('text_model.')}{name}"]
        expected = layers[f"text_encoder.{begin}{name}"]
        assert found.scaling["merged"] == 1 and found.lora_A["merged"].weight.equal(expected.down)
        assert found.lora_B["merged"].weight.equal(expected.up)
