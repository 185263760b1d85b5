"""Random weights of models that a judge scores by."""

from __future__ import annotations

from typing import Any

import torch

NARROW = {"embed_dim": 128, "vision": (3, 128, 32), "text": (128, 2, 3)}
"""Of --small: vision layers, width and patch; text width, heads and layers. Heads are 64 wide."""


def randomise(model: Any) -> None:
    """Weights that neither vanish nor explode, biases and gains included, so that no part is missed unnoticed."""
    for name, value in model.named_parameters():
        if value.ndim >= 2:
            torch.nn.init.normal_(value, std=value[0].numel() ** -0.5 if "embed" not in name else 0.1)
        elif "logit_scale" not in name:
            torch.nn.init.normal_(value, mean=1.0 if is_gain(model, name) else 0.0, std=0.1)
        else:
            torch.nn.init.constant_(value, 4.60517)


def is_gain(model: Any, name: str) -> bool:
    owner, _, leaf = name.rpartition(".")
    return leaf == "weight" and "Norm" in type(model.get_submodule(owner)).__name__
