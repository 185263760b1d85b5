"""Pipelines of diffusers under the names that the models' authors, kohya's trainers and ComfyUI give to tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from prdp.diffusion.original_layers import LAYOUTS, original_tensors
from prdp.diffusion.pipeline_formats import FORMATS, V_PREDICTION, ZERO_SNR

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_ENDS = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0",
    "conv_out": "out.2",
}  # fmt: skip
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


_BESIDE = {
    "stable_diffusion_3": ("first_stage_model.", ("clip_l", "clip_g", "t5xxl")),
    "flux": ("vae.", ("clip_l", "t5xxl")),
    "z_image": ("vae.", ("qwen3_4b",)),
}
"""`model.family` of transformers -> how ComfyUI calls the VAE and the text encoders beside them in one file."""
_FLUX_WIDTH = 3072
NETWORK = "model.diffusion_model."
"""Begins the names of the network that learns."""


def save_single_file(pipeline: Any, file: Path) -> Path:
    """Write a whole pipeline as one file, which diffusers' `from_single_file` and ComfyUI read.

    Raises:
        ValueError: a part that has no place in such a file, or that diffusers would read back otherwise.
    """
    from safetensors.torch import save_file

    tensors = _of_unets(pipeline) if hasattr(pipeline, "unet") else _of_transformers(pipeline)
    save_file(_each_its_own(tensors), file)
    return file


def _each_its_own(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous, and copied where two share their memory, which the format does not know."""
    found, seen = {}, set[int]()
    for name, value in tensors.items():
        value = value.contiguous()
        found[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return found


def _of_transformers(pipeline: Any) -> dict[str, torch.Tensor]:
    family = next(one.family for one in FORMATS if one.pipeline == type(pipeline).__name__)
    vae_prefix, names = _BESIDE[family]
    _check_read_back(pipeline, family)
    layout = LAYOUTS[family]
    tensors = {
        f"{NETWORK}{name}": value
        for name, value in original_tensors(layout, pipeline.transformer.state_dict()).items()
    }
    tensors |= {f"{vae_prefix}{name}": value for name, value in _vae_tensors(pipeline.vae).items()}
    for number, name in enumerate(names):
        encoder = getattr(pipeline, f"text_encoder_{number + 1}" if number else "text_encoder")
        for key, value in {} if encoder is None else encoder.state_dict().items():
            tensors[f"text_encoders.{name}.transformer.{_of_text_encoder(name, key)}"] = value
    return tensors


def _check_read_back(pipeline: Any, family: str) -> None:
    if family == "flux" and pipeline.transformer.inner_dim != _FLUX_WIDTH:
        raise ValueError(
            f"transformer: is {pipeline.transformer.inner_dim} wide: diffusers reads single files of FLUX.1 whose "
            f"transformer is {_FLUX_WIDTH} wide; take merged"
        )
    if family == "stable_diffusion_3":
        projection = pipeline.text_encoder.text_projection.weight
        if not projection.equal(torch.eye(len(projection)).to(projection)):
            raise ValueError(
                "text_encoder: its text_projection is no identity: diffusers takes it for one in single files of "
                "Stable Diffusion 3; take merged"
            )


def _of_text_encoder(name: str, key: str) -> str:
    if name.startswith("clip") and not key.startswith("text_projection"):
        return f"text_model.{key.removeprefix('text_model.')}"
    return f"model.{key}" if name.startswith("qwen") else key


def _of_unets(pipeline: Any) -> dict[str, torch.Tensor]:
    second = getattr(pipeline, "text_encoder_2", None)
    tensors = _of_unet(pipeline.unet)
    tensors |= {f"first_stage_model.{name}": value for name, value in _vae_tensors(pipeline.vae).items()}
    texts = pipeline.text_encoder.state_dict()
    if second is None and pipeline.unet.config.use_linear_projection:  # Stable Diffusion 2.x
        tensors |= _open_clip("cond_stage_model.model.", texts)
    else:
        first = "cond_stage_model." if second is None else "conditioner.embedders.0."
        for name, value in texts.items():
            tensors[f"{first}transformer.text_model.{name.removeprefix('text_model.')}"] = value
    if second is not None:
        tensors |= _open_clip("conditioner.embedders.1.model.", second.state_dict())
        tensors |= dict.fromkeys(_marks(pipeline.scheduler.config), torch.zeros(0))
    return tensors


def unet_names(unet: Any) -> set[str]:
    """Of all tensors of a UNet in a file of its authors."""
    return set(_of_unet(unet))


def _of_unet(unet: Any) -> dict[str, torch.Tensor]:
    layers = unet.config.layers_per_block
    if not isinstance(layers, int):
        raise ValueError(
            f"unet: layers_per_block={list(layers)}: must be one number for all blocks, or diffusers numbers them "
            "otherwise in a single file and does not read it back; take merged"
        )
    tensors = {f"{NETWORK}{_of_tensor(name, layers)}": value for name, value in unet.state_dict().items()}
    # An upsampler stands behind the attention of its block, where there is one.
    attended = {name.split(".1.")[0] for name in tensors if re.search(r"output_blocks\.\d+\.1\.", name)}
    return {
        name.replace(".UP.", ".2." if name.split(".UP.")[0] in attended else ".1."): value
        for name, value in tensors.items()
    }


def _marks(scheduler: Mapping[str, Any]) -> list[str]:
    """Tensors by which ComfyUI tells what a network of Stable Diffusion XL predicts: without them, noise."""
    if scheduler.get("prediction_type") != "v_prediction":
        return []
    return [V_PREDICTION, *([ZERO_SNR] if scheduler.get("rescale_betas_zero_snr") else [])]


def _vae_tensors(vae: Any) -> dict[str, torch.Tensor]:
    blocks = len(vae.config.block_out_channels)
    return {
        _of_vae(name, blocks): value[..., None, None] if "attentions" in name and value.dim() == 2 else value
        for name, value in vae.state_dict().items()
    }


def _of_tensor(name: str, layers: int) -> str:
    for theirs, other in _ENDS.items():
        if name.startswith(f"{theirs}."):
            return name.replace(theirs, other)
    if not re.match(r"(down|up)_blocks\.|mid_block\.", name):
        raise ValueError(f"unet: {name} has no name in files of the model's authors; take merged")
    side, rest = name.split("_blocks.", 1) if not name.startswith("mid") else ("mid", name.removeprefix("mid_block."))
    if side == "mid":
        kind, number, inner = rest.split(".", 2)
        return f"middle_block.{2 * int(number) if kind == 'resnets' else 1}.{_inner(kind, inner)}"
    block, kind, number, inner = rest.split(".", 3)
    place = int(block) * (layers + 1) + int(number)
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{(int(block) + 1) * (layers + 1)}.0.op.{inner.removeprefix('conv.')}"
        return f"input_blocks.{1 + place}.{0 if kind == 'resnets' else 1}.{_inner(kind, inner)}"
    if kind == "upsamplers":
        return f"output_blocks.{int(block) * (layers + 1) + layers}.UP.{inner}"
    return f"output_blocks.{place}.{0 if kind == 'resnets' else 1}.{_inner(kind, inner)}"


def _inner(kind: str, inner: str) -> str:
    part, _, end = inner.partition(".")
    return f"{_RESNET[part]}.{end}" if kind == "resnets" else inner


def _of_vae(name: str, blocks: int) -> str:
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(
        r"up_blocks\.(\d)\.(resnets\.(\d)|upsamplers\.0)",
        lambda found: f"up.{blocks - 1 - int(found[1])}." + (f"block.{found[3]}" if found[3] else "upsample"),
        name,
    )
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    if "mid_block.attentions.0." in name:
        before, inner = name.split("mid_block.attentions.0.")
        part, end = inner.rsplit(".", 1)
        return f"{before}mid.attn_1.{_ATTENTION[part]}.{end}"
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def _open_clip(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A text encoder under OpenCLIP's names.

    That of Stable Diffusion 2.x computes neither OpenCLIP's last layer nor its projection: folders of diffusers lack
    both, and so do files that are made of them.
    """
    state = {name.removeprefix("text_model."): value for name, value in state.items()}
    found = {
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
    }
    if "text_projection.weight" in state:
        found["text_projection"] = state["text_projection.weight"].T
    for name, value in state.items():
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if match is None or re.search(r"[kv]_proj", name):
            continue
        layer, part, end = match.groups()
        start = f"transformer.resblocks.{layer}."
        if part == "self_attn.q_proj":
            parts = [state[name.replace("q_proj", f"{one}_proj")] for one in "qkv"]
            found[f"{start}attn.in_proj_{end}"] = torch.cat(parts)
        else:
            found[f"{start}{_OPEN_CLIP[part]}.{end}"] = value
    return {prefix + name: value for name, value in found.items()}
