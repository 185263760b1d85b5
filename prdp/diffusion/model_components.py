"""Parts that all pipelines have: VAEs, text encoders and tokenizers that are computed exactly, weights that fit."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prdp.diffusion.model_folder import read_component
from prdp.diffusion.pipeline_formats import PipelineFormat
from prdp.support.json_lines import load_json

if TYPE_CHECKING:
    import torch

_STATISTICS = ("latents_mean", "latents_std")
_SHOWN = 3
_PLAIN_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Names for a tokenizer.json as it is."""
CHAT_TEMPLATE = "chat_template.jinja"
UNFIT = (ValueError, TypeError, LookupError, AttributeError, ImportError, RuntimeError, ArithmeticError)
"""What libraries raise for configurations that they make nothing of."""
_RENAMED = re.compile(r"mid_block\.attentions\.\d+\.(to_|group_norm)")
"""Attention of VAEs, whose tensors have other names in files of early versions of diffusers."""


def loading_problems(folder: Path, kind: PipelineFormat) -> list[str]:
    """Keys that have a component loaded in another way than from the tensors beside its configuration."""
    configs = {name: read_component(folder, name) for name in kind.components if (folder / name).is_dir()}
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


def vae_problems(vae: Mapping[str, Any], kind: PipelineFormat) -> list[str]:
    """Settings of a VAE that the pipeline leaves out, lacks or makes nothing of."""
    shifted = kind.network == "transformer"
    ignored = (() if shifted else ("shift_factor",)) + (() if kind.latent_statistics else _STATISTICS)
    problems = [
        f"{key}={vae[key]}: must be null: {kind.pipeline} leaves it out, so that pictures would be wrong"
        for key in ignored
        if vae.get(key)
    ]
    channels = vae["latent_channels"]
    if kind.latent_statistics and any(vae.get(key) is not None for key in _STATISTICS):
        problems += [
            f"{key}={vae.get(key)}: must be {channels} numbers, a channel of the latents each"
            f"{', above 0' if key == _STATISTICS[1] else ''}, or null with "
            f"{' and '.join(_STATISTICS)} alike"
            for key in _STATISTICS
            if not _numbers(vae.get(key), channels) or (key == _STATISTICS[1] and min(vae[key]) <= 0)
        ]
    scale, shift = vae["scaling_factor"], vae.get("shift_factor")
    if not _is_number(scale) or not scale > 0:
        problems.append(f"scaling_factor={scale}: must be a number above 0")
    if shifted and not _is_number(shift):
        problems.append(f"shift_factor={shift}: must be a number, which {kind.pipeline} adds to latents")
    if vae["out_channels"] != 3:
        problems.append(f"out_channels={vae['out_channels']}: must be 3, red, green and blue")
    return problems


def _numbers(value: Any, count: int) -> bool:
    given = value if isinstance(value, list | tuple) else []
    return len(given) == count and all(map(_is_number, given))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def tokenizer_problems(
    folder: Path, text: Mapping[str, Any], classes: Sequence[str], chat: bool = False
) -> list[str]:
    """A tokenizer of another class, without a chat template, or with tokens that the text encoder does not know."""
    whole, plain, settings = folder / "tokenizer.json", folder / "vocab.json", folder / "tokenizer_config.json"
    try:
        given = load_json(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        length, kind = given.get("model_max_length", 1), given.get("tokenizer_class") or classes[0]
        if not _is_number(length) or not length > 0:
            return [f"{settings.name}: model_max_length={length!r}: must be a number above 0"]
        if kind not in (*classes, *_PLAIN_TOKENIZERS):
            return [f"{settings.name}: tokenizer_class={kind}: must be {' or '.join(classes)}"]
        if chat and "chat_template" not in given and not (folder / CHAT_TEMPLATE).is_file():
            return [f"it has no chat_template in {settings.name}, and no {CHAT_TEMPLATE}: prompts are put into it"]
        if whole.is_file():
            content = load_json(whole.read_text(encoding="utf-8"))
            tokens = content["model"]["vocab"]  # T5's is a list of tokens and their scores.
            numbers = range(len(tokens)) if isinstance(tokens, list) else tokens.values()
            numbers = [*numbers, *(token["id"] for token in content["added_tokens"])]
        elif plain.is_file():
            numbers = list(load_json(plain.read_text(encoding="utf-8")).values())
        else:  # T5's spiece.model, which its own library reads
            return []
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
    # Tensors that two layers share are stored under the name of either.
    names: dict[int, list[str]] = {}
    for name, value in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(_plain(name))
    wrong = [
        f"{name} {list(value.shape)}" + (f", found {list(shapes[_plain(name)])}" if _plain(name) in shapes else "")
        for name, value in network.named_parameters()
        if not _RENAMED.search(name) and tuple(value.shape) not in [shapes.get(one) for one in names[id(value)]]
    ]
    # Of buffers those that are stored have to fit: some, which follow from the configuration, mostly are not.
    stored = network.state_dict().keys()
    wrong += [
        f"{name} {list(value.shape)}, found {list(shapes[_plain(name)])}"
        for name, value in network.named_buffers()
        if name in stored and shapes.get(_plain(name), tuple(value.shape)) != tuple(value.shape)
    ]
    if not wrong:
        return []
    rest = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return [f"the weights do not fit config.json, which asks for {'; '.join(wrong[:_SHOWN])}{rest}"]


def _plain(name: str) -> str:
    """A tensor's name without the prefix that transformers puts before a text encoder's, or not, by its version."""
    return name.removeprefix("text_model.").removeprefix("model.")
