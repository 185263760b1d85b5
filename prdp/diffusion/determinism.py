"""How exactly a GPU computes: float32 as float32, and the same bits again where that is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def set_up_arithmetic(device: torch.device, deterministic: bool) -> None:
    """For all that this process computes on the device from here on; a CPU needs nothing of it."""
    import torch

    if device.type != "cuda":
        return
    # Which convolutions take by default.
    torch.backends.cudnn.allow_tf32 = False
    if deterministic:
        use_deterministic_kernels()


@contextmanager
def tf32_products(allowed: bool) -> Iterator[None]:
    """Whether GPUs keep only 10 bits of what they multiply in float32, as float16 does, in products and convolutions.

    Meanwhile, for all that this process computes.
    """
    import torch

    backends: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allowed
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def use_deterministic_kernels() -> None:
    """For all that this process computes from here on, on GPUs.

    By themselves backward passes of convolutions and attention add in an order that changes from run to run.

    References:
        https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    import torch

    # cuBLAS reads it with its first product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
