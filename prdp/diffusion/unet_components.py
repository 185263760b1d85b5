"""UNets of Stable Diffusion whose outputs are computed exactly as diffusers' own pipeline does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prdp.diffusion.effective_scheduler import CONSISTENCY, scheduler_problems
from prdp.diffusion.model_folder import INDEX, read_component
from prdp.diffusion.pipeline_formats import LATENT_CONSISTENCY, PipelineFormat
from prdp.support.json_lines import load_json

_UNET_NEEDS = {
    "class_embed_type": "it takes class labels beside the prompt",
    "num_class_embeds": "it takes class labels beside the prompt",
    "encoder_hid_dim": "it takes the states of another kind of text encoder",
    "encoder_hid_dim_type": "it takes the states of another kind of text encoder, or of images",
}
_NO_ADDITION = "it takes a second condition beside the prompt, as Stable Diffusion XL does"
_SIZES = 6
"""Numbers of `time_ids`: original height and width, crop, target height and width."""


def unet_problems(
    folder: Path,
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    texts: Mapping[str, Mapping[str, Any]],
    kind: PipelineFormat,
) -> dict[str, list[str]]:
    """File or folder -> what of a folder with a UNet is not computed, beside its VAE and its texts.

    Args:
        unet, vae, texts: configurations with defaults, the texts' by their component.
    """

    found = {"unet": _needs(unet, _UNET_NEEDS), "scheduler": scheduler_problems(read_component(folder, "scheduler"))}
    if kind.addition is None:
        found["unet"] += _needs(unet, {"addition_embed_type": _NO_ADDITION})
    elif unet.get("addition_embed_type") != kind.addition:
        found["unet"].append(f"addition_embed_type={unet.get('addition_embed_type')}: must be {kind.addition}")
    if _index(folder).get("_class_name") == LATENT_CONSISTENCY:
        found["unet"] += _untold(unet)
        found["scheduler"] += _consistency_problems(read_component(folder, "scheduler"))
    if not found["unet"]:
        found["unet"] += _input_problems(unet, vae, texts)
        if kind.addition is not None:
            found["unet"] += _addition_problems(unet, texts)
            found[INDEX] = _index_problems(folder)
    return found


def _index(folder: Path) -> Mapping[str, Any]:
    index: Mapping[str, Any] = load_json((folder / INDEX).read_text(encoding="utf-8"))
    return index


def _untold(unet: Mapping[str, Any]) -> list[str]:
    """A UNet that the pipeline of latent consistency models cannot tell the guidance."""
    told = unet.get("time_cond_proj_dim") is not None
    return [] if told else [f"time_cond_proj_dim=null: must be a number: {LATENT_CONSISTENCY} tells the guidance by it"]


def _consistency_problems(scheduler: Mapping[str, Any]) -> list[str]:
    """What that pipeline does with its scheduler, and the one that it is drawn by here does not."""
    name = scheduler.get("_class_name")
    if name != CONSISTENCY:
        return [f"_class_name={name}: must be {CONSISTENCY}, which {LATENT_CONSISTENCY} alone draws by"]
    clips = scheduler.get("clip_sample")
    return [f"clip_sample={clips}: must be false: latents are never clipped here"] if clips else []


def _needs(config: Mapping[str, Any], reasons: Mapping[str, str]) -> list[str]:
    return [f"{key}={config[key]}: must be null: {why}" for key, why in reasons.items() if config.get(key) is not None]


def _addition_problems(unet: Mapping[str, Any], texts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A UNet that takes another vector than the second encoder's projection and six sizes."""
    pooled, width = texts["text_encoder_2"]["projection_dim"], unet["addition_time_embed_dim"]
    found = unet["projection_class_embeddings_input_dim"]
    if isinstance(width, int) and found == pooled + _SIZES * width:
        return []
    return [
        f"projection_class_embeddings_input_dim={found}: must be the projection_dim of text_encoder_2, {pooled}, and "
        f"{_SIZES} x addition_time_embed_dim={width}; the refiner's, which takes a score in place of a size, is not "
        "computed"
    ]


def _index_problems(folder: Path) -> list[str]:
    """Settings of Stable Diffusion XL's pipeline that stand in its model_index.json."""
    index = _index(folder)
    zeros = index.get("force_zeros_for_empty_prompt", True)
    problems = [] if isinstance(zeros, bool) else [f"force_zeros_for_empty_prompt={zeros}: must be true or false"]
    if index.get("requires_aesthetics_score"):
        problems.append("requires_aesthetics_score=true: must be false: the refiner is not computed")
    return problems


def _input_problems(
    unet: Mapping[str, Any], vae: Mapping[str, Any], texts: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    problems = []
    channels = vae["latent_channels"]
    for key in ("in_channels", "out_channels"):
        if unet[key] != channels:
            problems.append(
                f"{key}={unet[key]}: must be {channels}, the VAE's latent_channels; networks that also take a masked "
                "image, a depth map or an image to change are not computed"
            )
    widths = unet["cross_attention_dim"]
    widths = {widths} if isinstance(widths, int) else set(widths)
    given = sum(text["hidden_size"] for text in texts.values())
    if widths != {given}:
        problems.append(
            f"cross_attention_dim={unet['cross_attention_dim']}: must be {given}, the hidden_size of the text encoder"
            + ("s together" if len(texts) > 1 else "")
        )
    embedded = unet["time_cond_proj_dim"]
    if embedded is not None and (isinstance(embedded, bool) or not isinstance(embedded, int) or embedded < 4):
        problems.append(f"time_cond_proj_dim={embedded}: must be null or a whole number of at least 4")
    size = unet["sample_size"]
    sides = size if isinstance(size, list | tuple) and len(size) == 2 else (size,)
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        problems.append(f"sample_size={size}: must be the side of the latents, or their height and width, above 0")
    return problems
