"""Denoising errors of two policies on either side of the old one, which DiffusionNFT trains by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from prdp.evidence.base import Channels, Of
from prdp.evidence.denoising import Denoising, Noised
from prdp.support.rules import Positive
from prdp.types import Int64, Times

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ImplicitPolicies(Denoising):
    """As `Denoising`, and the errors of implicit policies, which mix the outputs of the policy and the old one.

    With output+ = output_old + b (output - output_old) and output- = output_old - b (output - output_old), the error
    of each is the mean over latent dims of (x_0 - final latents)^2, where x_0 are the clean latents that it tells of:
        positive, negative = -error / b, so that the gradient at the old policy does not depend on b.

    Attributes:
        implicit_step: b, how far the implicit policies are from the old one, in units of the policy's own distance.
        adaptive_weight: also, each of these errors is divided by max(mean |x_0 - final latents|, 1e-5) of its own.

    References:
        Zheng et al., DiffusionNFT: Online diffusion reinforcement with forward process, 2025, arXiv:2509.16117, eq. 5.
    """

    times: Times = "sampler"
    adaptive_weight: bool = True
    implicit_step: Positive = 1.0

    channels: ClassVar[tuple[str, ...]] = ("positive", "negative", *Denoising.channels)
    others: ClassVar[Mapping[str, Of]] = {"positive": "old", "negative": "old", **Denoising.others}

    def channel(
        self, name: str, output: torch.Tensor, others: Mapping[Of, torch.Tensor], noised: Noised
    ) -> torch.Tensor:
        from prdp.diffusion.process import denoising_error

        if name not in ("positive", "negative"):
            return super().channel(name, output, others, noised)
        old, step = others["old"], self.implicit_step
        mixed = old + (step if name == "positive" else -step) * (output - old)
        return -denoising_error(noised.clean_of(mixed), noised.clean, self.adaptive_weight) / step

    def describe(self, now: Channels, known: Mapping[str, np.ndarray], cells: Int64) -> dict[str, float]:
        metrics = super().describe(now, known, cells)
        for name in ("positive", "negative"):
            if name in metrics:
                metrics[f"{name}_error"] = -self.implicit_step * metrics.pop(name)
        return metrics
