"""Denoising errors as log-likelihoods of one power and weight, which Advantage Weighted Matching trains by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from prdp.evidence.base import Channels, Of
from prdp.evidence.denoising import Denoising, Noised
from prdp.support.rules import Positive
from prdp.types import Int64

if TYPE_CHECKING:
    import torch

_LEAST = 1e-10
"""Added to errors before a root, whose gradient is infinite at 0; the authors'."""


@dataclass(frozen=True)
class DenoisingLikelihood(Denoising):
    """As `Denoising`, and what stands for the log-likelihood of an image at each draw.

    With l the denoising error of a draw and t its noise level, sigma of a flow and sqrt(1 - abar) of DDPM's process:
        log_likelihood = -(t / p) ((l + 1e-10)^p - 1e-10^p) for ghuber, -t (sqrt(l + 1e-10) - 1e-5) for huber, -t^2 l
            for t_squared, -t l for t, and -l for uniform.
        log_importance = log_likelihood - that of the policy which an epoch's updates start from.

    Attributes:
        weighting: which of them.
        power: p of ghuber.

    References:
        Xue et al., Advantage Weighted Matching, 2025, arXiv:2509.25050, and the authors' code.
    """

    weighting: Literal["ghuber", "huber", "t_squared", "t", "uniform"] = "ghuber"
    power: Positive = 0.25

    channels: ClassVar[tuple[str, ...]] = ("log_likelihood", *Denoising.channels)
    passes: ClassVar[Mapping[str, tuple[str, Of]]] = {
        **Denoising.passes,
        "log_likelihood_sampled": ("log_likelihood", "sampled"),
    }
    data: ClassVar[tuple[str, ...]] = (*Denoising.data, "log_likelihood_sampled")
    derived: ClassVar[Mapping[str, tuple[str, str]]] = {
        **Denoising.derived,
        "log_importance": ("log_likelihood", "log_likelihood_sampled"),
    }

    def channel(
        self, name: str, output: torch.Tensor, others: Mapping[Of, torch.Tensor], noised: Noised
    ) -> torch.Tensor:
        import torch

        from prdp.diffusion.process import denoising_error

        if name != "log_likelihood":
            return super().channel(name, output, others, noised)
        error = denoising_error(output, noised.target, self.adaptive_weight)
        level = torch.from_numpy(noised.process.noise_level(noised.times)).to(error)
        if self.weighting in ("uniform", "t", "t_squared"):
            return -error * level ** ("uniform", "t", "t_squared").index(self.weighting)
        power, scale = (self.power, self.power) if self.weighting == "ghuber" else (0.5, 1.0)
        return -level / scale * ((error + _LEAST) ** power - _LEAST**power)

    def describe(self, now: Channels, known: Mapping[str, np.ndarray], cells: Int64) -> dict[str, float]:
        metrics = super().describe(now, known, cells)
        if "log_likelihood" in now:
            values = now["log_likelihood"].ravel()[cells]
            metrics["log_likelihood"] = float(values.mean())
            if "log_likelihood_sampled" in known:
                metrics["logratio"] = float((values - known["log_likelihood_sampled"].ravel()[cells]).mean())
        return metrics
