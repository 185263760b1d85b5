"""Transformers of rectified flows whose outputs are computed exactly as diffusers' own pipeline does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prdp.diffusion.model_folder import read_component
from prdp.diffusion.pipeline_formats import FLUX, STABLE_DIFFUSION_3, Z_IMAGE, PipelineFormat
from prdp.diffusion.rectified_flow import SCHEDULER

_Config = Mapping[str, Any]
_Texts = Mapping[str, _Config]


def transformer_problems(
    folder: Path, transformer: _Config, vae: _Config, texts: _Texts, kind: PipelineFormat
) -> dict[str, list[str]]:
    """File or folder -> what of a folder with a transformer is not computed, beside its VAE and its texts.

    Args:
        transformer, vae, texts: configurations with defaults, the texts' by their component; one may be absent.
    """
    scheduler = read_component(folder, "scheduler")
    found = scheduler.get("_class_name", SCHEDULER)
    problems = [] if found == SCHEDULER else [f"_class_name={found}: must be {SCHEDULER}"]
    problems += [
        f"{key}={scheduler[key]}: must be false: {why}"
        for key, why in _OTHER_FLOWS.items()
        if scheduler.get(key) not in (None, False)
    ]
    problems += _wrong_values(scheduler)
    return {"scheduler": problems, "transformer": _INPUTS[kind.pipeline](transformer, vae, texts)}


def _wrong_values(scheduler: _Config) -> list[str]:
    """Keys of a FlowMatchEulerDiscreteScheduler that it makes no noise levels of; absent ones have its defaults."""
    dynamic = bool(scheduler.get("use_dynamic_shifting"))
    whole = ("base_image_seq_len", "max_image_seq_len") if dynamic else ()
    problems, total = [], scheduler.get("num_train_timesteps", _TIMES)
    if total != _TIMES:
        problems.append(f"num_train_timesteps={total!r}: must be {_TIMES}, as networks of flows are told times")
    if not dynamic and "shift" in scheduler and not (_is_number(scheduler["shift"]) and scheduler["shift"] > 0):
        problems.append(f"shift={scheduler['shift']!r}: must be a number above 0")
    problems += [
        f"{key}={scheduler[key]!r}: must be a number"
        for key in (("base_shift", "max_shift") if dynamic else ())
        if key in scheduler and not _is_number(scheduler[key])
    ]
    problems += [
        f"{key}={scheduler[key]!r}: must be a whole number of at least 1"
        for key in whole
        if key in scheduler and not (type(scheduler[key]) is int and scheduler[key] >= 1)
    ]
    low, high = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    if dynamic and not problems and low >= high:
        problems.append(f"base_image_seq_len={low}: must be below max_image_seq_len={high}")
    kind, terminal = scheduler.get("time_shift_type", _SHIFTS[0]), scheduler.get("shift_terminal")
    if kind not in _SHIFTS:
        problems.append(f"time_shift_type={kind!r}: must be {' or '.join(_SHIFTS)}")
    if terminal is not None and not (_is_number(terminal) and 0 < terminal < 1):
        problems.append(f"shift_terminal={terminal!r}: must be null, or a number above 0 and below 1")
    spaced = [key for key in _SPACED if scheduler.get(key)]
    if len(spaced) > 1:
        problems.append(f"{spaced[1]}=True: must be false where {spaced[0]} is true")
    return problems


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_TIMES = 1000
_SHIFTS = ("exponential", "linear")
_SPACED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
_OTHER_FLOWS = {
    "invert_sigmas": "the flow would run from data to noise",
    "stochastic_sampling": "sampler.kind says how noise is drawn",
    "use_flow_sigmas": "it belongs to schedulers of another class",
}


_WIDTH = "the hidden_size of text_encoder"


def _stable_diffusion_3(transformer: _Config, vae: _Config, texts: _Texts) -> list[str]:
    clip = [texts["text_encoder"], texts["text_encoder_2"]]
    width = sum(text["hidden_size"] for text in clip)
    problems = _channels(transformer, vae, 1)
    problems += _must_be(
        transformer,
        "pooled_projection_dim",
        sum(text["projection_dim"] for text in clip),
        "the projection_dim of text_encoder and text_encoder_2 together",
    )
    if "text_encoder_3" in texts:
        width_3 = texts["text_encoder_3"]["d_model"]
        problems += _must_be(transformer, "joint_attention_dim", width_3, "the d_model of text_encoder_3")
    if width > transformer["joint_attention_dim"]:
        problems.append(
            f"joint_attention_dim={transformer['joint_attention_dim']}: must be at least {width}, the hidden_size of "
            "text_encoder and text_encoder_2 together"
        )
    return problems


def _flux(transformer: _Config, vae: _Config, texts: _Texts) -> list[str]:
    return [
        *_channels(transformer, vae, 4),
        *_must_be(transformer, "patch_size", 1, "as latents are packed before they come to it"),
        *_must_be(transformer, "pooled_projection_dim", texts["text_encoder"]["hidden_size"], _WIDTH),
        *_must_be(
            transformer, "joint_attention_dim", texts["text_encoder_2"]["d_model"], "the d_model of text_encoder_2"
        ),
    ]


def _z_image(transformer: _Config, vae: _Config, texts: _Texts) -> list[str]:
    problems = [
        *_channels(transformer, vae, 1),
        *_must_be(transformer, "cap_feat_dim", texts["text_encoder"]["hidden_size"], _WIDTH),
        *_must_be(transformer, "siglip_feat_dim", None, "as it takes no images beside the prompt"),
    ]
    for key, size in (("all_patch_size", 2), ("all_f_patch_size", 1)):
        if size not in transformer[key]:
            problems.append(f"{key}={transformer[key]}: must hold {size}, which its pipeline cuts latents by")
    return problems


def _channels(transformer: _Config, vae: _Config, times: int) -> list[str]:
    """Channels that go in and come out: those of the latents, of `times` of them packed into one token."""
    what = "the VAE's latent_channels" + (f" x {times}" if times > 1 else "")
    why = "; networks that also take a masked image, a control or an image to change are not computed"
    expected = times * vae["latent_channels"]
    given = {"out_channels": transformer["in_channels"], **transformer}
    if given["out_channels"] is None:
        given["out_channels"] = given["in_channels"]
    return [
        problem + why
        for key in ("in_channels", "out_channels")
        for problem in _must_be(given, key, expected, what)
    ]


def _must_be(config: _Config, key: str, expected: Any, what: str) -> list[str]:
    return [] if config.get(key) == expected else [f"{key}={config.get(key)}: must be {expected}, {what}"]


_INPUTS: Mapping[str, Callable[[_Config, _Config, _Texts], list[str]]] = {
    STABLE_DIFFUSION_3.pipeline: _stable_diffusion_3,
    FLUX.pipeline: _flux,
    Z_IMAGE.pipeline: _z_image,
}
"""Class of the pipeline -> what is wrong with what its transformer takes and gives."""
