"""Kernels of a GPU that give the same bits again."""

from __future__ import annotations

import os


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
