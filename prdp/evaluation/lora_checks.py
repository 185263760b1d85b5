"""LoRAs of models that are loaded one after the other: all that do not fit are found before the first one draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prdp.config import ModelConfig
from prdp.diffusion import family_of
from prdp.evaluation.models import EvaluatedModel
from prdp.support.errors import StartError

if TYPE_CHECKING:
    from pathlib import Path

_COMPUTED_BY_DIFFUSERS = (".lora_magnitude_vector", ".lora_B.bias")
"""Ends of names of adapters that are no plain LoRA: what fits is left to diffusers, when it loads them."""


def lora_problems(models: Sequence[EvaluatedModel]) -> list[str]:
    """Why LoRA files, and experts of gated models, do not fit their bases; a line a file, which names layer and shapes.

    The networks have no weights here; of the files tensors are read, and nothing is computed with them.
    """
    bases: list[tuple[ModelConfig, Any]] = []
    problems = []
    for model in models:
        family: Any = family_of(model.model)
        if model.kind not in ("lora", "gated") or not hasattr(family, "empty_model"):
            continue
        empty = next((one for base, one in bases if base == model.model), None)
        if empty is None:
            empty = family.empty_model(model.model)
            bases.append((model.model, empty))
        assert model.path is not None
        try:
            if model.kind == "lora":
                _check_file(model.path, empty)
            else:
                _check_experts(model.path, empty)
        except StartError as error:
            problems.append(str(error))
    return problems


def _check_file(file: Path, empty: Any) -> None:
    """As far as its loading would go, see `prdp.evaluation.loading.apply_lora`."""
    from prdp.evaluation.loading import reads_by_layers

    names = list(_names(file))
    if reads_by_layers(file, names, empty.component):
        empty.read("models", str(file))
    elif not any(name.endswith(_COMPUTED_BY_DIFFUSERS) for name in names):
        empty.check("models", str(file))


def _check_experts(folder: Path, empty: Any) -> None:
    from prdp.experts.gate import fitting_layers
    from prdp.experts.gate_files import read_gated
    from prdp.experts.lora_files import read_expert

    gated = read_gated(folder)
    files = zip(gated.expert_files(), gated.names, strict=True)
    fitting_layers([read_expert("models", str(file), name) for file, name in files], empty.network, empty.component)


def _names(file: Path) -> Iterator[str]:
    """Of the tensors in a file, by its header."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            yield from opened.keys()
    except (SafetensorError, OSError) as error:
        raise StartError(f"models: {file}: cannot be read as safetensors: {error}") from error
