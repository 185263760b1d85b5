"""The Gaussian transitions of a sampler: one table of coefficients, shared by sampling and scoring."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from prdp.types import Bool, Float64, Int64

Coefficients = tuple[float, float, float] | tuple[Float64, Float64, Float64]


@dataclass(frozen=True)
class Transitions:
    """pi(x' | x, c) = N(sample_coef * x + output_coef * network(x, time, c), sigma^2 I), step by step.

    Any step may be taken without noise; the quiet coefficients are its own without noise (DDIM with eta 0, an Euler
    step of a flow's ODE).

    Attributes:
        times: float64 [T], descending, in the unit of the process: training timesteps, or sigma of a flow.
        sample_coef, output_coef, sigma: float64 [T]. sigma is 0 at steps that never draw noise.
        quiet_sample_coef, quiet_output_coef: float64 [T].
    """

    times: Float64
    sample_coef: Float64
    output_coef: Float64
    sigma: Float64
    quiet_sample_coef: Float64
    quiet_output_coef: Float64

    def __len__(self) -> int:
        return len(self.times)

    @property
    def noisy(self) -> Int64:
        """Int64 [S]: the steps that can draw noise and so have a log-prob, ascending."""
        return np.flatnonzero(self.sigma)

    @property
    def sensitivity(self) -> Float64:
        """Float64 [T]: kappa_t = (output_coef / sigma)^2, the KL of a step per squared change of the network output.

        0 at steps that never draw noise.
        """
        kappa = np.zeros(len(self))
        np.divide(self.output_coef, self.sigma, out=kappa, where=self.sigma > 0)
        return kappa**2

    @property
    def step_size(self) -> Float64:
        """Float64 [T]: how far a unit of the network's output moves the latents in a step without noise.

        Of a flow it is the difference of the noise levels, sigma - sigma', whatever the sampler; of DDIM it is the
        change of the noise-to-signal ratio times the signal after the step, where the network predicts the noise.
        """
        return np.abs(self.quiet_output_coef)

    @property
    def noise_weight(self) -> Float64:
        """Float64 [T]: sigma, divided by its mean over the steps that can draw noise."""
        return self.sigma / self.sigma[self.noisy].mean()

    def mean(self, step: int, latents: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Mean of step number `step`, taken with noise, for float32 latents and outputs of one shape."""
        return float(self.sample_coef[step]) * latents + float(self.output_coef[step]) * output

    def coefficients(self, step: int, with_noise: Bool) -> Coefficients:
        """sample_coef, output_coef and sigma of step number `step` (0 is the noisiest) for every image of a batch.

        Args:
            with_noise: bool [B], whether the image's step draws noise.

        Returns:
            three numbers where they are equal for all, otherwise three float64 [B].
        """
        noisy = (self.sample_coef[step], self.output_coef[step], self.sigma[step])
        quiet = (self.quiet_sample_coef[step], self.quiet_output_coef[step], 0.0)
        if with_noise.all() or not with_noise.any():
            return tuple(float(value) for value in (noisy if with_noise.all() else quiet))  # type: ignore[return-value]
        return tuple(np.where(with_noise, a, b) for a, b in zip(noisy, quiet, strict=True))  # type: ignore[return-value]


def log_ratio(noise: torch.Tensor, difference: torch.Tensor) -> torch.Tensor:
    """log pi_theta / pi_ref of a transition without cancellation, as the mean over latent dims; float32 [B].

    With z = (x' - mean_ref) / sigma and d = (mean_theta - mean_ref) / sigma it is mean(z d - d^2 / 2): the two
    log-probs, each near -1 whatever the policies, never appear.

    Args:
        noise: z, float32 [B, ...].
        difference: d, float32 [B, ...].
    """
    return (noise * difference - 0.5 * difference.square()).flatten(1).mean(1)


def guarded_importance(noise: torch.Tensor, difference: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """sigma mean(z d): `log_ratio` without its bias -mean(d^2) / 2, in the unit of the latents; float32 [B].

    Args:
        noise, difference: z and d of `log_ratio`, relative to the policy that sampled, float32 [B, ...].
        sigma: of each transition, float32 [B].

    References:
        Wang et al., GRPO-Guard, 2025, arXiv:2510.22319.
    """
    return sigma * (noise * difference).flatten(1).mean(1)


def kl(difference: torch.Tensor) -> torch.Tensor:
    """KL[pi_theta || pi] of a transition, ||mean_theta - mean||^2 / (2 sigma^2) as the mean over latent dims.

    Args:
        difference: d of `log_ratio`, float32 [B, ...].

    Returns:
        float32 [B].
    """
    return 0.5 * difference.square().flatten(1).mean(1)


def standardise(
    table: Transitions,
    steps: torch.Tensor,
    latents: torch.Tensor,
    following: torch.Tensor,
    output: torch.Tensor,
    reference: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """z and d of `log_ratio` for transitions latents -> following; the one function that sampling and scoring share.

    Args:
        steps: int64 [B], row of the table for each cell; of steps that drew noise.
        latents, following: x and x', float32 [B, C, h, w].
        output, reference: network outputs of the policy and of the reference, float32 [B, C, h, w].
    """

    def column(values: np.ndarray) -> torch.Tensor:
        rows = torch.from_numpy(values).to(latents.device, latents.dtype)[steps]
        return rows.view(-1, *[1] * (latents.dim() - 1))

    sample_coef, output_coef, sigma = column(table.sample_coef), column(table.output_coef), column(table.sigma)
    noise = (following - (sample_coef * latents + output_coef * reference)) / sigma
    return noise, output_coef / sigma * (output - reference)
