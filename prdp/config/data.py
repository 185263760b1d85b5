"""The sections of prompts, rollouts and evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from prdp.config.choices import FOLDERS, MISSING
from prdp.support.rules import AnyText, Count, CountOrZero, one_of


@dataclass
class PromptsConfig:
    """Two prompt sources: one to train on, one that is never trained on."""

    train: dict[str, Any] = MISSING
    """The source to train on: `_target_` and its arguments."""
    heldout: dict[str, Any] = MISSING
    """The source to judge on, likewise."""
    heldout_may_overlap: bool = False
    """True for a run that is to be judged on its training prompts: a start refuses it otherwise."""
    shuffle: bool = True
    """A new order of the training prompts on every pass; false keeps the source's."""


@dataclass
class RolloutsConfig:
    """Where the images come from that are learned from: a sampler, or sets that prdp generate has made."""

    source: Annotated[str, one_of("sample", "stored")] = "sample"
    """'sample': drawn in every epoch; 'stored': read from the sets of rollouts.path, with their prompts in place of
    prompts.train. Evaluations sample in any case."""
    path: Annotated[Any, FOLDERS] = None
    """Folder of a set, or a list of folders whose prompts are put together."""
    skill: AnyText | None = None
    """Only prompts of this skill: `skill` in their metadata, else the name that their prompt set has in the set of
    images; null takes all."""
    encode: bool = False
    """Compute latents from the stored images by the trained model's VAE: for sets of a model with another VAE or of
    another size, whose images are then scaled to cover the model's size and cut around the middle."""

    @property
    def folders(self) -> tuple[str, ...]:
        """Those of `path`."""
        return () if self.path is None else (self.path,) if isinstance(self.path, str) else tuple(self.path)


@dataclass
class EvaluationConfig:
    """Held-out prompts judge the run: the same prompts and the same noise every time."""

    every: CountOrZero = 10
    """Epochs between evaluations; the first and the last always happen. 0 for only these two."""
    prompts: Count = 64
    """Held-out prompts of an evaluation between the first and the last."""
    images_per_prompt: Count = 2
    """Images of each held-out prompt; diversity needs at least 2."""
    final_prompts: Count = 256
    """Prompts of the first and the last evaluation, which the report's intervals come from."""
    grid_prompts: Count = 12
    """Prompts in the report's grid of pictures."""
    seed: CountOrZero = 1234
    """Of the noise, and of which held-out prompts are taken."""
