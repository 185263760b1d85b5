"""In which precision a network computes, and how it computes in float32 when its weights are stored in less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def precision_problem(dtype_key: str, dtype: str, autocast_key: str, autocast: str | None) -> str | None:
    """What is wrong with a pair of storage precision and autocast, in a line that names both keys; None if nothing is.

    Weights of one half precision cannot be normalised with activations of the other.
    """
    if autocast is None or dtype in ("float32", autocast):
        return None
    return f"{autocast_key}={autocast}: must be null or {dtype} for {dtype_key}={dtype}, or set {dtype_key}=float32"


@contextmanager
def upcast(*modules: torch.nn.Module) -> Iterator[None]:
    """Parameters and buffers in half precision are float32 for the time of the context; their values do not change."""
    import torch

    half = {
        value: value.data
        for module in modules
        for value in chain(module.parameters(), module.buffers())
        if value.dtype in (torch.bfloat16, torch.float16)
    }
    for value, data in half.items():
        value.data = data.float()
    try:
        yield
    finally:
        for value, data in half.items():
            value.data = data
