"""The LoRA experts that `models=[...]` names: of runs, of sweeps, of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prdp.config import ModelConfig
from prdp.evaluation.models import named_models
from prdp.support.errors import StartError

if TYPE_CHECKING:
    from prdp.experts.lora_files import Expert


@dataclass(frozen=True)
class FoundExperts:
    """Experts by name.

    Attributes:
        experts: in the order of the entries, sweeps unfolded; of one base as far as files tell.
        base: what the first run among them was trained from; None where none is a run's.
        notes: what is to be known of them, for people.
    """

    experts: list[Expert]
    base: ModelConfig | None
    notes: list[str]


def find_experts(entries: Sequence[str]) -> FoundExperts:
    """Read what entries of `models` name.

    Raises:
        StartError: an entry that is no LoRA, two of one name, or experts of different bases.
    """
    from prdp.experts.lora_files import read_expert
    from prdp.experts.merge import check_same_base

    models = named_models(entries, ModelConfig())
    for model in models:
        if model.kind != "lora":
            what = {
                "checkpoint": "a checkpoint: experts are exported weights, which a run writes at its end, and "
                "prdp export RUN --checkpoint EPOCH at any time",
                "gated": "a mixture of experts, and no expert",
            }.get(model.kind, "a whole model: experts are LoRAs, of learner=lora")
            raise StartError(f"models: {model.name}: {model.source} is {what}")
    names = [model.name for model in models]
    if twice := next((name for name in names if names.count(name) > 1), None):
        same = ", ".join(model.source for model in models if model.name == twice)
        raise StartError(f"models: two are called {twice} ({same}); name them, as in models=[first:path,...]")
    experts = [read_expert("models", str(model.path), model.name) for model in models]
    check_same_base(experts)
    runs = [model for model in models if model.run is not None]
    notes = [
        f"{model.name} was trained from {model.model.path} and {runs[0].name} from {runs[0].model.path}: a mean of "
        "deltas of different bases has no meaning"
        for model in runs[1:]
        if model.model.path != runs[0].model.path
    ]
    notes += [
        f"{model.name} was trained beside model.adapters {', '.join(model.model.adapters)}, which are no part of it: "
        "use the result beside them, too"
        for model in runs
        if model.model.adapters
    ]
    return FoundExperts(experts, runs[0].model if runs else None, notes)
