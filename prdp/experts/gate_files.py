"""The folder of a gated model: gates, the experts that they weigh, and what the base is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prdp.config import FAMILIES, ModelConfig
from prdp.diffusion.adapter_files import AdaptedLayer
from prdp.diffusion.adapter_tensors import LORA_FILE
from prdp.experts.lora_files import Expert, read_expert
from prdp.experts.writing import write_lora
from prdp.support.errors import ConfigError, StartError
from prdp.support.json_lines import load_json

if TYPE_CHECKING:
    import torch

    from prdp.experts.gate import Mixture

SHARES = ("layer", "block")
GATE_FILE = "gate.json"
TENSORS = "gate.safetensors"
AVERAGE = "frozen_average"
"""Folder of the LoRA whose experts have the weights that the gates had on average."""
_FORMAT = 1


@dataclass(frozen=True)
class GatedModel:
    """What stands in a folder of a gated model.

    Attributes:
        folder: of it.
        model: the base.
        share: of the gates, see `Mixture`.
        names: of the experts.
    """

    folder: Path
    model: ModelConfig
    share: str
    names: tuple[str, ...]

    def expert_files(self) -> list[Path]:
        """In the order of the gates' weights."""
        return [self.folder / "experts" / str(number) / LORA_FILE for number in range(len(self.names))]

    def files(self) -> list[Path]:
        """All that its pictures depend on, beside the base."""
        return [self.folder / GATE_FILE, self.folder / TENSORS, *self.expert_files()]

    def put_into(self, network: Any) -> Mixture:
        """Put experts and gates into the base's network.

        Raises:
            StartError: they do not fit, or a file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from prdp.experts.gate import Mixture

        files = zip(self.expert_files(), self.names, strict=True)
        experts = [read_expert("models", str(file), name) for file, name in files]
        mixture = Mixture(network, experts, self.share)
        try:
            mixture.load(load_file(self.folder / TENSORS))
        except (ValueError, SafetensorError, OSError) as error:
            raise StartError(f"models: {self.folder / TENSORS}: {error}") from error
        return mixture


def is_gated(folder: Path) -> bool:
    """Whether a folder is that of a gated model."""
    return (folder / GATE_FILE).is_file()


def read_gated(folder: Path) -> GatedModel:
    """Read what a gated model is; of its weights nothing.

    Raises:
        StartError: the file is damaged, of another format, names a model that is a class of somebody's own, or stands
            alone.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from prdp.support.plain_yaml import literal

    file = folder / GATE_FILE
    try:
        document = load_json(file.read_text(encoding="utf-8"))
        if document["format"] != _FORMAT:
            raise StartError(f"models: {file}: format={document['format']}: this version reads format {_FORMAT}")
        model: Any = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(ModelConfig), literal(document["model"]))
        )
        share, names = str(document["share"]), tuple(str(one["name"]) for one in document["experts"])
    except (ValueError, KeyError, TypeError, OSError, OmegaConfBaseException) as error:
        if isinstance(error, StartError):
            raise
        raise StartError(f"models: {file} is damaged: {error}") from error
    if model.family not in FAMILIES:
        raise ConfigError(
            f"models: {file}: model.family={model.family} is a class of its maker's own, which is not run; evaluated "
            f"are the families {', '.join(FAMILIES)}"
        )
    if share not in SHARES or not names:
        raise StartError(f"models: {file} is damaged: share={share} with {len(names)} experts")
    gated = GatedModel(folder, model, share, names)
    if missing := [one.relative_to(folder) for one in gated.files() if not one.is_file()]:
        raise StartError(f"models: {folder} is not whole: {missing[0]} is missing, which prdp gate wrote")
    return gated


def write_gated(
    folder: Path, mixture: Mixture, experts: Sequence[Expert], share: str, model: ModelConfig, facts: Mapping[str, Any]
) -> None:
    """Write a gated model into a folder that is there; its experts are copied.

    Args:
        facts: how it came about, for people.
    """
    from safetensors.torch import save_file

    from prdp.experts.merging import Part, concatenated

    sources = [{"name": one.name, "file": one.source.name, "sha256": one.digest} for one in experts]
    for number, expert in enumerate(experts):
        place = folder / "experts" / str(number)
        place.mkdir(parents=True)
        plain = {name: concatenated([Part(1.0, layer)]) for name, layer in expert.layers.items()}
        write_lora(place, plain, "diffusers", {"method": "copy", "sources": [sources[number]]})
    save_file({name: value.detach().cpu().contiguous() for name, value in mixture.parameters.items()}, folder / TENSORS)
    document = {"format": _FORMAT, "share": share, "experts": sources, "model": dataclasses.asdict(model), **facts}
    (folder / GATE_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def frozen_average(
    mixture: Mixture, experts: Sequence[Expert], averages: Mapping[str, torch.Tensor]
) -> dict[str, AdaptedLayer]:
    """One LoRA in which every expert has the weight that its layer's gate gave it on average; alpha = rank.

    Args:
        averages: gate -> mean weights [M].
    """
    from prdp.experts.merging import Part, concatenated

    layers = {}
    for name in sorted({name for expert in experts for name in expert.layers}):
        weights = averages[mixture.leaders[name.partition(".")[2]]]
        parts = [
            Part(float(weights[number]), expert.layers[name])
            for number, expert in enumerate(experts)
            if name in expert.layers
        ]
        layers[name] = concatenated(parts)
    return layers
