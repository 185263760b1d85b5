"""The Gaussian transitions of a sampler: one table of coefficients, shared by sampling and scoring."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prdp.types import Float64, Int64

KINDS = ("ddim", "ddpm")
SPACINGS = ("leading", "trailing", "linspace")


@dataclass(frozen=True)
class Transitions:
    """pi(x_{t-1} | x_t, c) = N(sample_coef * x_t + output_coef * network(x_t, t, c), sigma^2 I), step by step.

    Attributes:
        timesteps: int64 [T], descending.
        sample_coef, output_coef, sigma: float64 [T]. sigma is 0 at deterministic steps, which come last.
    """

    timesteps: Int64
    sample_coef: Float64
    output_coef: Float64
    sigma: Float64

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def stochastic_steps(self) -> int:
        """S, the number of leading steps that draw noise and so have a log-prob."""
        return int(np.count_nonzero(self.sigma))

    @property
    def sensitivity(self) -> Float64:
        """Float64 [S]: kappa_t = (output_coef / sigma)^2, the KL of a step per squared change of the network output."""
        stochastic = slice(self.stochastic_steps)
        return np.asarray((self.output_coef[stochastic] / self.sigma[stochastic]) ** 2, np.float64)

    def mean(self, step: int, latents: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Mean of step number `step` (0 is the noisiest) for float32 latents and outputs of one shape."""
        return float(self.sample_coef[step]) * latents + float(self.output_coef[step]) * output


def train_timesteps(scheduler: Mapping[str, Any], steps: int, spacing: str | None = None) -> Int64:
    """The timesteps, descending, as diffusers' schedulers space them.

    Args:
        scheduler: a diffusers scheduler configuration.
        steps: number of denoising steps T.
        spacing: leading, trailing or linspace; None takes the configuration's.

    Raises:
        ValueError: unknown spacing, or more steps than there are training timesteps to take.
    """
    total = int(scheduler["num_train_timesteps"])
    spacing = spacing or scheduler.get("timestep_spacing", "leading")
    if not 1 <= steps <= total:
        raise ValueError(f"sampler.steps is {steps}, expected 1 to {total}, the number of training timesteps")
    if spacing == "leading":
        offset = int(scheduler.get("steps_offset", 0))
        timesteps = np.arange(steps, dtype=np.int64)[::-1] * (total // steps) + offset
        if timesteps[0] >= total:
            raise ValueError(
                f"sampler.steps is {steps}: with leading spacing and steps_offset {offset} the first timestep would be "
                f"{timesteps[0]}, and {total - 1} is the last that was trained; take fewer steps, or "
                "sampler.timestep_spacing=trailing"
            )
        return timesteps
    if spacing == "trailing":
        # Cut, because the range overshoots to timestep -1 where total / steps is rounded down.
        return np.round(np.arange(total, 0, -total / steps)[:steps]).astype(np.int64) - 1
    if spacing == "linspace":
        return np.linspace(0, total - 1, steps).round()[::-1].astype(np.int64)
    raise ValueError(f"sampler.timestep_spacing is {spacing!r}, expected one of {', '.join(SPACINGS)}")


def alphas_cumprod(scheduler: Mapping[str, Any]) -> Float64:
    """Float64 [num_train_timesteps]: abar_t of a diffusers scheduler configuration.

    Raises:
        ValueError: a beta schedule that this file does not know.
    """
    if scheduler.get("trained_betas") is not None:
        betas = np.asarray(scheduler["trained_betas"], dtype=np.float64)
    else:
        start, end = float(scheduler["beta_start"]), float(scheduler["beta_end"])
        total, schedule = int(scheduler["num_train_timesteps"]), scheduler["beta_schedule"]
        if schedule == "scaled_linear":
            betas = np.linspace(math.sqrt(start), math.sqrt(end), total) ** 2
        elif schedule == "linear":
            betas = np.linspace(start, end, total)
        else:
            raise ValueError(f"scheduler beta_schedule is {schedule!r}, expected scaled_linear or linear")
    if scheduler.get("rescale_betas_zero_snr"):
        raise ValueError("scheduler rescale_betas_zero_snr is true: the first step would have no finite mean")
    return np.asarray(np.cumprod(1.0 - betas), np.float64)


def build_transitions(
    scheduler: Mapping[str, Any],
    *,
    kind: str = "ddim",
    steps: int = 50,
    eta: float = 1.0,
    spacing: str | None = None,
    deterministic_final_steps: int = 0,
) -> Transitions:
    """The transition table of a diffusers scheduler configuration.

    'ddim' is eq. 16 of Song et al. (2021) with noise level eta; eta = 1 is what the PRDP paper calls the DDPM sampler.
    'ddpm' is the ancestral posterior of Ho et al. (2020) with variance "fixed small"; its last step has no variance.

    A step leads to the next timestep of the list that the network is asked at, and the last one to the final abar: 1,
    or abar_0 for DDIM where set_alpha_to_one is false. So does diffusers' DDPMScheduler. Its DDIMScheduler leads to t -
    num_train_timesteps // steps instead, which is the next of the list for leading spacing (but for the last step where
    steps_offset is that large), and for trailing spacing where `steps` divides num_train_timesteps. Elsewhere
    (linspace, most of all with few steps) its latents have another noise level than the network is then told; this
    table keeps to the list there, and differs from it.

    Args:
        scheduler: configuration with num_train_timesteps, betas, prediction_type, steps_offset, set_alpha_to_one.
        steps: T.
        eta: noise level of DDIM, above 0.
        spacing: overrides the configuration's timestep_spacing.
        deterministic_final_steps: number of last steps taken with eta = 0; 0 and 1 are the same for 'ddpm'.

    Raises:
        ValueError: names the key, its value and what was expected.
    """
    if kind not in KINDS:
        raise ValueError(f"sampler.kind is {kind!r}, expected one of {', '.join(KINDS)}")
    timesteps = train_timesteps(scheduler, steps, spacing)
    if not 0 <= deterministic_final_steps < steps:
        raise ValueError(
            f"sampler.deterministic_final_steps is {deterministic_final_steps}, expected 0 to {steps - 1} for {steps} "
            "steps: at least one step must draw noise"
        )
    if kind == "ddpm" and (eta != 1.0 or deterministic_final_steps > 1):
        raise ValueError(
            f"sampler.eta is {eta} and sampler.deterministic_final_steps is {deterministic_final_steps}, expected 1 "
            "and 0 or 1 for sampler.kind=ddpm, whose last step alone draws no noise"
        )
    abar_all = alphas_cumprod(scheduler)
    final = 1.0 if kind == "ddpm" or scheduler.get("set_alpha_to_one", True) else float(abar_all[0])
    abar = abar_all[timesteps]
    abar_prev = np.append(abar[1:], final)

    variance = (1.0 - abar_prev) / (1.0 - abar) * (1.0 - abar / abar_prev)
    level = np.full(steps, eta if kind == "ddim" else 1.0)
    if deterministic_final_steps:
        level[-deterministic_final_steps:] = 0.0
    sigma = level * np.sqrt(np.maximum(variance, 0.0))
    # x_{t-1} has mean clean_coef * x0 + noise_coef * epsilon; for sigma = posterior sigma this is the DDPM posterior.
    clean_coef = np.sqrt(abar_prev)
    noise_coef = np.sqrt(np.maximum(1.0 - abar_prev - sigma**2, 0.0))
    signal, noise = np.sqrt(abar), np.sqrt(1.0 - abar)
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction == "epsilon":
        sample_coef, output_coef = clean_coef / signal, noise_coef - clean_coef * noise / signal
    elif prediction == "v_prediction":
        sample_coef, output_coef = clean_coef * signal + noise_coef * noise, noise_coef * signal - clean_coef * noise
    elif prediction == "sample":
        sample_coef, output_coef = noise_coef / noise, clean_coef - noise_coef * signal / noise
    else:
        raise ValueError(
            f"scheduler prediction_type is {prediction!r}, expected epsilon, v_prediction or sample"
        )
    if not sigma.any():
        raise ValueError(
            f"sampler.steps is {steps}: no step would draw noise, as the last one does not; take more steps"
        )
    if np.any(np.diff((sigma == 0).astype(int)) < 0):
        first = int(np.argmin(sigma != 0))
        raise ValueError(
            f"sampler.steps is {steps}: step {first + 1} of them would draw no noise, and later ones would; take "
            "another number of steps or another sampler.timestep_spacing"
        )
    return Transitions(timesteps, sample_coef, output_coef, sigma)


def reference_log_prob(noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """log pi_ref of a transition, as the mean over latent dims; float32 [B].

    Args:
        noise: z = (x_{t-1} - mean_ref) / sigma, float32 [B, ...].
        sigma: float32 [B].
    """
    return -0.5 * noise.square().flatten(1).mean(1) - sigma.log() - 0.5 * math.log(2.0 * math.pi)


def log_ratio(noise: torch.Tensor, difference: torch.Tensor) -> torch.Tensor:
    """log pi_theta / pi_ref of a transition without cancellation, as the mean over latent dims; float32 [B].

    With z = (x_{t-1} - mean_ref) / sigma and d = (mean_theta - mean_ref) / sigma it is mean(z d - d^2 / 2): the two
    log-probs, each near -1 whatever the policies, never appear.

    Args:
        noise: z, float32 [B, ...].
        difference: d, float32 [B, ...].
    """
    return (noise * difference - 0.5 * difference.square()).flatten(1).mean(1)


def kl_ref(difference: torch.Tensor) -> torch.Tensor:
    """KL[pi_theta || pi_ref] of a transition, ||mean_theta - mean_ref||^2 / (2 sigma^2) as the mean over latent dims.

    Args:
        difference: d of `log_ratio`, float32 [B, ...].

    Returns:
        float32 [B].
    """
    return 0.5 * difference.square().flatten(1).mean(1)
