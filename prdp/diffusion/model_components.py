"""Whether a pipeline's components are ones whose images are computed exactly as diffusers' own pipeline does."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prdp.diffusion.model_folder import INDEX, TOKENIZERS, read_component, weight_files
from prdp.diffusion.pipeline_formats import STABLE_DIFFUSION, PipelineFormat
from prdp.support.errors import StartError
from prdp.support.json_lines import load_json

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel

_UNET_NEEDS = {
    "class_embed_type": "it takes class labels beside the prompt",
    "num_class_embeds": "it takes class labels beside the prompt",
    "encoder_hid_dim": "it takes the states of another kind of text encoder",
    "encoder_hid_dim_type": "it takes the states of another kind of text encoder, or of images",
}
_NO_ADDITION = "it takes a second condition beside the prompt, as Stable Diffusion XL does"
_SIZES = 6
"""Numbers of `time_ids`: original height and width, crop, target height and width."""
_STATISTICS = ("latents_mean", "latents_std")
_SHOWN = 3
_PLAIN_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Names for a tokenizer.json as it is."""
_UNFIT = (ValueError, TypeError, LookupError, AttributeError, ImportError, RuntimeError, ArithmeticError)
"""What libraries raise for configurations that they make nothing of."""
_RENAMED = re.compile(r"mid_block\.attentions\.\d+\.(to_|group_norm)")
"""Attention of VAEs, whose tensors have other names in files of early versions of diffusers."""


def check_components(
    where: str, folder: Path, variant: str | None = None, kind: PipelineFormat = STABLE_DIFFUSION
) -> None:
    """Refuse a folder, whole according to `check_model`, whose components are not computed exactly.

    Args:
        where: put before each problem, such as 'model.path=/models/sd'.
        folder, variant, kind: of the pipeline.

    Raises:
        StartError: all problems, a line each.
    """
    problems = component_problems(folder, variant, kind)
    if problems:
        raise StartError("\n".join(f"{where}: {problem}" for problem in problems))


def component_problems(
    folder: Path, variant: str | None = None, kind: PipelineFormat = STABLE_DIFFUSION
) -> list[str]:
    """What of a pipeline's folder is not computed exactly: the file, the key, its value and what is expected.

    Reads configurations and the headers of weights, where these are there.
    """
    from prdp.diffusion.effective_scheduler import scheduler_problems
    from prdp.diffusion.libraries import quiet

    quiet()
    if loaded := _loading_problems(folder, kind):
        return loaded
    unet = read_component(folder, "unet")
    vae = component_config(folder, "vae", "AutoencoderKL")
    found = {"unet": _needs(unet, _UNET_NEEDS), "scheduler": scheduler_problems(read_component(folder, "scheduler"))}
    if kind.addition is None:
        found["unet"] += _needs(unet, {"addition_embed_type": _NO_ADDITION})
    elif unet.get("addition_embed_type") != kind.addition:
        found["unet"].append(f"addition_embed_type={unet.get('addition_embed_type')}: must be {kind.addition}")
    texts = {}
    for name in kind.text_encoders:
        try:
            texts[name] = _text_config(folder, name)
        except _UNFIT as error:
            return [f"{folder / name}: transformers makes no {kind.components[name]} of it: {error}"]
    found["vae"] = _vae_problems(vae, kind)
    for tokenizer, text in zip(kind.tokenizers, texts.values(), strict=True):
        found[tokenizer] = _tokenizer_problems(folder / tokenizer, text)
    if not found["unet"]:
        try:
            network = empty_unet(folder)
        except _UNFIT as error:
            found["unet"].append(f"diffusers makes no network of it: {error}")
        else:
            found["unet"] += _unet_problems(network.config, vae, texts)
            if kind.addition is not None:
                found["unet"] += _addition_problems(network.config, texts)
                found[INDEX] = _index_problems(folder)
            if not found["unet"]:
                found["unet weights"] = weight_problems(network, weight_files(folder, "unet", variant))
    if not any(found.values()):
        for name in ("vae", *kind.text_encoders):
            try:
                network = _empty_vae(folder) if name == "vae" else _empty_text_encoder(folder, name, kind)
            except _UNFIT as error:
                found[name] = [f"no network can be made of it: {type(error).__name__}: {error}"]
            else:
                found[f"{name} weights"] = weight_problems(network, weight_files(folder, name, variant))
    return [f"{folder / name.partition(' ')[0]}: {problem}" for name, each in found.items() for problem in each]


def _loading_problems(folder: Path, kind: PipelineFormat) -> list[str]:
    """Keys that have a component loaded in another way than from the tensors beside its configuration."""
    configs = {name: read_component(folder, name) for name in kind.components}
    problems = [
        f"{folder / name}: {key}={config[key]}: must be null: only plain weights are computed"
        for name, config in configs.items()
        for key in ("quantization_config", "_attn_implementation")
        if config.get(key) is not None
    ]
    adapters = [folder / name / "adapter_config.json" for name in kind.text_encoders]
    return problems + [f"{one}: adapters of a text encoder are not computed" for one in adapters if one.exists()]


def component_config(folder: Path, name: str, kind: str) -> dict[str, Any]:
    """The configuration of a component of a pipeline's folder, with the defaults of its class of diffusers."""
    import diffusers

    parameters = inspect.signature(getattr(diffusers, kind).__init__).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
    return {**defaults, **read_component(folder, name)}


def empty_unet(folder: Path) -> UNet2DConditionModel:
    """The UNet of a pipeline's folder on the meta device, from its configuration alone."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel.from_config(read_component(folder, "unet"))


def _empty_vae(folder: Path) -> torch.nn.Module:
    import torch
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        return AutoencoderKL.from_config(read_component(folder, "vae"))


def _empty_text_encoder(folder: Path, name: str, kind: PipelineFormat) -> torch.nn.Module:
    import torch
    import transformers

    with torch.device("meta"):
        network: torch.nn.Module = getattr(transformers, kind.components[name])(
            transformers.CLIPTextConfig(**read_component(folder, name))
        )
    return network


def _needs(config: Mapping[str, Any], reasons: Mapping[str, str]) -> list[str]:
    return [f"{key}={config[key]}: must be null: {why}" for key, why in reasons.items() if config.get(key) is not None]


def _text_config(folder: Path, name: str) -> Mapping[str, Any]:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(**read_component(folder, name)).to_dict()


def _vae_problems(vae: Mapping[str, Any], kind: PipelineFormat) -> list[str]:
    ignored = ("shift_factor",) if kind.latent_statistics else ("shift_factor", *_STATISTICS)
    problems = [
        f"{key}={vae[key]}: must be null: {kind.pipeline} leaves it out, so that pictures would be wrong"
        for key in ignored
        if vae.get(key)
    ]
    channels = vae["latent_channels"]
    if kind.latent_statistics and any(vae.get(key) is not None for key in _STATISTICS):
        problems += [
            f"{key}={vae.get(key)}: must be {channels} numbers, a channel of the latents each, or null with "
            f"{' and '.join(_STATISTICS)} alike"
            for key in _STATISTICS
            if not _numbers(vae.get(key), channels)
        ]
    scale = vae["scaling_factor"]
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not scale > 0:
        problems.append(f"scaling_factor={scale}: must be a number above 0")
    if vae["out_channels"] != 3:
        problems.append(f"out_channels={vae['out_channels']}: must be 3, red, green and blue")
    return problems


def _numbers(value: Any, count: int) -> bool:
    given = value if isinstance(value, list | tuple) else []
    return len(given) == count and all(isinstance(one, int | float) and not isinstance(one, bool) for one in given)


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
    index = load_json((folder / INDEX).read_text(encoding="utf-8"))
    zeros = index.get("force_zeros_for_empty_prompt", True)
    problems = [] if isinstance(zeros, bool) else [f"force_zeros_for_empty_prompt={zeros}: must be true or false"]
    if index.get("requires_aesthetics_score"):
        problems.append("requires_aesthetics_score=true: must be false: the refiner is not computed")
    return problems


def _unet_problems(
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


def _tokenizer_problems(folder: Path, text: Mapping[str, Any]) -> list[str]:
    """A tokenizer with tokens that the text encoder has no embedding of."""
    whole, plain, settings = folder / "tokenizer.json", folder / "vocab.json", folder / "tokenizer_config.json"
    try:
        given = load_json(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        length, kind = given.get("model_max_length", 1), given.get("tokenizer_class") or TOKENIZERS[0]
        if isinstance(length, bool) or not isinstance(length, int | float) or not length > 0:
            return [f"{settings.name}: model_max_length={length!r}: must be a number above 0"]
        if kind not in (*TOKENIZERS, *_PLAIN_TOKENIZERS):
            return [f"{settings.name}: tokenizer_class={kind}: must be {' or '.join(TOKENIZERS)}"]
        if whole.is_file():
            content = load_json(whole.read_text(encoding="utf-8"))
            numbers = [*content["model"]["vocab"].values(), *(token["id"] for token in content["added_tokens"])]
        else:
            numbers = list(load_json(plain.read_text(encoding="utf-8")).values())
        largest = max(int(number) for number in numbers)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"its vocabulary cannot be read: {error!r}"]
    if largest >= text["vocab_size"]:
        return [
            f"it has a token of number {largest}: must be below {text['vocab_size']}, the text encoder's vocab_size"
        ]
    return []


def weight_problems(network: torch.nn.Module, files: Sequence[Path]) -> list[str]:
    """Tensors that the files lack or have in another shape: the libraries would leave such weights random.

    Args:
        network: on the meta device.
        files: safetensors; none is no problem here, see `check_model`.
    """
    from safetensors import safe_open

    if not files:
        return []
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, framework="numpy") as content:
            shapes.update({_plain(name): tuple(content.get_slice(name).get_shape()) for name in list(content.keys())})
    wrong = [
        f"{name} {list(value.shape)}" + (f", found {list(shapes[_plain(name)])}" if _plain(name) in shapes else "")
        for name, value in network.named_parameters()
        if not _RENAMED.search(name) and shapes.get(_plain(name)) != tuple(value.shape)
    ]
    if not wrong:
        return []
    rest = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return [f"the weights do not fit config.json, which asks for {'; '.join(wrong[:_SHOWN])}{rest}"]


def _plain(name: str) -> str:
    """A tensor's name without the prefix that transformers puts before a text encoder's, or not, by its version."""
    return name.removeprefix("text_model.")
