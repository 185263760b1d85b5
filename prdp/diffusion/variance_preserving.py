"""The variance-preserving process of DDPM, and the steps of DDIM, DDPM and consistency models through it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from prdp.config import DIFFUSION_KINDS, DIFFUSION_SPACINGS, SamplerConfig
from prdp.diffusion.process import column
from prdp.diffusion.transitions import Transitions
from prdp.types import Float64, Int64

_ORIGINAL_STEPS, _TIMESTEP_SCALING = 50, 10.0
"""Defaults of diffusers' LCMScheduler."""
_SIGMA_DATA = 0.5


class VariancePreserving:
    """q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I) of a diffusers scheduler configuration.

    Args:
        scheduler: configuration with num_train_timesteps, betas and prediction_type.
    """

    def __init__(self, scheduler: Mapping[str, Any]) -> None:
        self._scheduler = scheduler
        self._abar = alphas_cumprod(scheduler)
        self._prediction = scheduler.get("prediction_type", "epsilon")

    def transitions(self, sampler: SamplerConfig) -> Transitions:
        """See `build_transitions`."""
        table = build_transitions(
            self._scheduler,
            kind=sampler.kind,
            steps=sampler.steps,
            eta=sampler.eta,
            spacing=sampler.timestep_spacing,
            deterministic_final_steps=sampler.deterministic_final_steps,
            original_inference_steps=sampler.original_inference_steps,
        )
        if sampler.shift is not None:
            raise ValueError(f"sampler.shift is {sampler.shift:g}, expected null for a model that is no flow")
        return table

    def time_at(self, quantile: float) -> float:
        """All training timesteps are equally frequent."""
        return len(self._abar) - 1.0 - math.floor(quantile * len(self._abar))

    def noise_level(self, times: Float64) -> Float64:
        """sqrt(1 - abar)."""
        return np.asarray(np.sqrt(1.0 - self._abar[times.astype(np.int64)]), np.float64)

    def noised(
        self, latents: torch.Tensor, times: Float64, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x_t, and epsilon, v or x_0 as the network predicts it."""
        signal, spread = self._signal_and_spread(times, latents)
        targets = {"epsilon": noise, "v_prediction": signal * noise - spread * latents, "sample": latents}
        return signal * latents + spread * noise, targets[self._prediction]

    def clean(self, latents: torch.Tensor, times: Float64, output: torch.Tensor) -> torch.Tensor:
        """x_0 as the output tells it."""
        signal, spread = self._signal_and_spread(times, latents)
        if self._prediction == "epsilon":
            return (latents - spread * output) / signal
        return output if self._prediction == "sample" else signal * latents - spread * output

    def _signal_and_spread(self, times: Float64, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        abar = self._abar[times.astype(np.int64)]
        return column(np.sqrt(abar), like), column(np.sqrt(1.0 - abar), like)


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
    raise ValueError(
        f"sampler.timestep_spacing is {spacing!r}, expected one of {', '.join(DIFFUSION_SPACINGS)} for a model that is "
        "no flow"
    )


def consistency_timesteps(scheduler: Mapping[str, Any], steps: int, original_steps: int | None = None) -> Int64:
    """The timesteps, descending, that diffusers' LCMScheduler takes.

    Args:
        scheduler: a diffusers scheduler configuration.
        steps: number of denoising steps T.
        original_steps: of the evenly spaced schedule that T steps are taken of; None takes the configuration's
            original_inference_steps, else 50.

    Raises:
        ValueError: more steps than that schedule has, or more of these than there are training timesteps.
    """
    total = int(scheduler["num_train_timesteps"])
    original = original_steps or int(scheduler.get("original_inference_steps") or _ORIGINAL_STEPS)
    if original > total:
        raise ValueError(
            f"sampler.original_inference_steps is {original}, expected 1 to {total}, the number of training timesteps"
        )
    if not 1 <= steps <= original:
        raise ValueError(
            f"sampler.steps is {steps}, expected 1 to {original}, the original_inference_steps of sampler.kind="
            "consistency"
        )
    chosen = np.floor(np.linspace(0, original, steps, endpoint=False)).astype(np.int64)
    return (original - chosen) * (total // original) - 1


def alphas_cumprod(scheduler: Mapping[str, Any]) -> Float64:
    """Float64 [num_train_timesteps]: abar_t of a diffusers scheduler configuration.

    Raises:
        ValueError: a beta schedule that this file does not know, or no signal at the end for a network that predicts
            epsilon, of which the first step would have no finite mean.
    """
    if scheduler.get("rescale_betas_zero_snr") and scheduler.get("prediction_type", "epsilon") == "epsilon":
        raise ValueError(
            "scheduler rescale_betas_zero_snr is true for prediction_type=epsilon: the first step would have no finite "
            "mean"
        )
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
    abar = np.asarray(np.cumprod(1.0 - betas), np.float64)
    return _without_signal_at_the_end(abar) if scheduler.get("rescale_betas_zero_snr") else abar


def _without_signal_at_the_end(abar: Float64) -> Float64:
    """Shifted and scaled so that the first value stays and the last is 0: algorithm 1 of Lin et al. (2023)."""
    signal = np.sqrt(abar)
    return np.asarray(((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2, np.float64)


def build_transitions(
    scheduler: Mapping[str, Any],
    *,
    kind: str = "ddim",
    steps: int = 50,
    eta: float = 1.0,
    spacing: str | None = None,
    deterministic_final_steps: int = 0,
    original_inference_steps: int | None = None,
) -> Transitions:
    """The transition table of a diffusers scheduler configuration.

    'ddim' is eq. 16 of Song et al. (2021) with noise level eta; eta = 1 is what the PRDP paper calls the DDPM sampler.
    'ddpm' is the ancestral posterior of Ho et al. (2020) with variance "fixed small"; its last step has no variance.
    'consistency' is multistep consistency sampling (Song et al., 2023) as diffusers' LCMScheduler does it: noise is
    drawn anew around the clean latents that the output tells of, and the last step draws none.

    A step leads to the next timestep of the list that the network is asked at, and the last one to the final abar: 1,
    or abar_0 for DDIM where set_alpha_to_one is false. So does diffusers' DDPMScheduler. Its DDIMScheduler leads to t -
    num_train_timesteps // steps instead, which is the next of the list for leading spacing (but for the last step where
    steps_offset is that large), and for trailing spacing where `steps` divides num_train_timesteps. Elsewhere
    (linspace, most of all with few steps) its latents have another noise level than the network is then told; this
    table keeps to the list there, and differs from it.

    Args:
        scheduler: configuration with num_train_timesteps, betas, prediction_type, steps_offset, set_alpha_to_one; of
            consistency models also original_inference_steps and timestep_scaling.
        steps: T.
        eta: noise level of DDIM; with 0 no step draws noise.
        spacing: overrides the configuration's timestep_spacing.
        deterministic_final_steps: number of last steps taken with eta = 0; 0 and 1 are the same for 'ddpm' and
            'consistency'.
        original_inference_steps: of 'consistency', see `consistency_timesteps`.

    Raises:
        ValueError: names the key, its value and what was expected.
    """
    if kind not in DIFFUSION_KINDS:
        raise ValueError(
            f"sampler.kind is {kind!r}, expected one of {', '.join(DIFFUSION_KINDS)} for a model that is no flow"
        )
    if kind == "consistency":
        _check_consistency(eta, spacing)
        timesteps = consistency_timesteps(scheduler, steps, original_inference_steps)
    else:
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
    if kind == "consistency":
        return _consistency_transitions(scheduler, timesteps, abar, deterministic_final_steps)
    abar_prev = np.append(abar[1:], final)

    variance = (1.0 - abar_prev) / (1.0 - abar) * (1.0 - abar / abar_prev)
    level = np.full(steps, eta if kind == "ddim" else 1.0)
    if deterministic_final_steps:
        level[-deterministic_final_steps:] = 0.0
    sigma = level * np.sqrt(np.maximum(variance, 0.0))
    prediction = scheduler.get("prediction_type", "epsilon")
    sample_coef, output_coef = _mean_coefficients(abar, abar_prev, sigma, prediction)
    return Transitions(
        timesteps.astype(np.float64),
        sample_coef,
        output_coef,
        sigma,
        *_mean_coefficients(abar, abar_prev, np.zeros(steps), prediction),
    )


def _mean_coefficients(abar: Float64, abar_prev: Float64, sigma: Float64, prediction: str) -> tuple[Float64, Float64]:
    """sample_coef and output_coef of steps between two noise levels that draw noise of standard deviation sigma."""
    # x_{t-1} has mean clean_coef * x0 + noise_coef * epsilon; for sigma = posterior sigma this is the DDPM posterior.
    clean_coef = np.sqrt(abar_prev)
    noise_coef = np.sqrt(np.maximum(1.0 - abar_prev - sigma**2, 0.0))
    signal, noise = np.sqrt(abar), np.sqrt(1.0 - abar)
    if prediction == "epsilon":
        return clean_coef / signal, noise_coef - clean_coef * noise / signal
    if prediction == "v_prediction":
        return clean_coef * signal + noise_coef * noise, noise_coef * signal - clean_coef * noise
    if prediction == "sample":
        return noise_coef / noise, clean_coef - noise_coef * signal / noise
    raise ValueError(f"scheduler prediction_type is {prediction!r}, expected epsilon, v_prediction or sample")


def _check_consistency(eta: float, spacing: str | None) -> None:
    if eta != 1.0:
        raise ValueError(f"sampler.eta is {eta}, expected 1 for sampler.kind=consistency, whose noise is fixed")
    if spacing is not None:
        raise ValueError(
            f"sampler.timestep_spacing is {spacing}, expected null for sampler.kind=consistency, whose timesteps are "
            "taken of sampler.original_inference_steps"
        )


def _consistency_transitions(
    scheduler: Mapping[str, Any], timesteps: Int64, abar: Float64, deterministic_final_steps: int
) -> Transitions:
    """Rows of LCMScheduler; a step without noise adds the noise that the output tells of instead of fresh noise."""
    # c_skip and c_out hold the boundary condition f(x, 0) = x of latent consistency models.
    scaled = timesteps * float(scheduler.get("timestep_scaling", _TIMESTEP_SCALING))
    skip, out = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2), scaled / np.sqrt(scaled**2 + _SIGMA_DATA**2)
    prediction = scheduler.get("prediction_type", "epsilon")
    ones, zeros = np.ones_like(abar), np.zeros_like(abar)
    clean_by_sample, clean_by_output = _mean_coefficients(abar, ones, zeros, prediction)
    noise_by_sample, noise_by_output = _mean_coefficients(abar, zeros, zeros, prediction)
    abar_prev = np.append(abar[1:], 1.0)
    signal, sigma = np.sqrt(abar_prev), np.sqrt(1.0 - abar_prev)
    sample_coef, output_coef = signal * (skip + out * clean_by_sample), signal * out * clean_by_output
    quiet_sample_coef, quiet_output_coef = sample_coef + sigma * noise_by_sample, output_coef + sigma * noise_by_output
    if deterministic_final_steps:
        last = slice(len(timesteps) - deterministic_final_steps, None)
        sample_coef[last], output_coef[last], sigma[last] = quiet_sample_coef[last], quiet_output_coef[last], 0.0
    return Transitions(
        timesteps.astype(np.float64), sample_coef, output_coef, sigma, quiet_sample_coef, quiet_output_coef
    )
