"""Plain denoising: fine-tuning on images as they are, without rewards (Ho et al., 2020, arXiv 2006.11239)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def denoising(denoising: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean denoising error of all images and draws, the loss of pretraining.

    Args:
        denoising: minus the denoising error of each image and draw, [n, D].

    Returns:
        the loss, and no counts.
    """
    return -denoising.mean(), {}
