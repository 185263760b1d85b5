"""Rectified flows, x_sigma = (1 - sigma) x_0 + sigma noise, and their stochastic samplers as rows of `Transitions`.

Every one of them is x' ~ N(sample_coef x + output_coef v, std^2 I) with the network's velocity v = noise - x_0:

* flow_sde: arXiv:2505.05470, eq. 9; s = eta sqrt(sigma / (1 - sigma)).
* dance_sde: arXiv:2505.07818, eq. 7; s = eta at all times. Both are Euler-Maruyama steps of one family of SDEs that
  keep the flow's marginals in the limit of small steps.
* cps: coefficients-preserving sampling, arXiv:2509.05952; the noise level after a step is exactly the next sigma,
  as that of DDIM. eta in (0, 1] mixes noise of old and new: sin(eta pi / 2) of new; eta 1 is multistep consistency
  sampling, as diffusers' FlowMatchLCMScheduler does it.
* edm_churn: the same with cos(eta pi / 2) written as 1 / (1 + gamma), for which `eta` is taken (arXiv:2603.12893).
* euler: the ODE; no step draws noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from prdp.config import FLOW_KINDS, FLOW_SPACINGS, SamplerConfig
from prdp.diffusion.process import column
from prdp.diffusion.transitions import Transitions
from prdp.types import Float64

SCHEDULER = "FlowMatchEulerDiscreteScheduler"


class RectifiedFlow:
    """The process of a FlowMatchEulerDiscreteScheduler configuration.

    Args:
        scheduler: content of scheduler/scheduler_config.json.
        grid: of the pipeline's own call without sigmas, one of `FLOW_SPACINGS`.
        tokens: image tokens that the transformer sees; dynamic shifting asks for it.
    """

    def __init__(self, scheduler: Mapping[str, Any], grid: str = "scheduler", tokens: int | None = None) -> None:
        self._scheduler, self._grid, self._tokens = scheduler, grid, tokens

    def transitions(self, sampler: SamplerConfig) -> Transitions:
        """See `flow_transitions`."""
        if sampler.kind not in FLOW_KINDS:  # before the spacing, which an option of another process sets too
            raise _wrong_kind(sampler.kind)
        sigmas = flow_sigmas(
            self._scheduler,
            sampler.steps,
            grid=sampler.timestep_spacing or self._grid,
            tokens=self._tokens,
            shift=sampler.shift,
        )
        return flow_transitions(
            sigmas, kind=sampler.kind, eta=sampler.eta, deterministic_final_steps=sampler.deterministic_final_steps
        )

    def time_at(self, quantile: float) -> float:
        """Sigma is uniform in (0, 1]."""
        return 1.0 - quantile

    def noise_level(self, times: Float64) -> Float64:
        """Sigma, the time itself."""
        return times

    def noised(
        self, latents: torch.Tensor, times: Float64, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x_sigma and noise - x_0."""
        sigma = column(times, latents)
        return (1.0 - sigma) * latents + sigma * noise, noise - latents

    def clean(self, latents: torch.Tensor, times: Float64, output: torch.Tensor) -> torch.Tensor:
        """x_0 = x_sigma - sigma v."""
        return latents - column(times, latents) * output


def flow_sigmas(
    scheduler: Mapping[str, Any],
    steps: int,
    *,
    grid: str = "scheduler",
    tokens: int | None = None,
    shift: float | None = None,
) -> Float64:
    """The noise levels of a sampling run, as diffusers' scheduler computes them.

    Args:
        scheduler: a FlowMatchEulerDiscreteScheduler configuration.
        steps: number of steps T.
        grid: 'linspace' hands the scheduler sigmas 1, 1 - 1/T, ..., 1/T, as the pipelines of FLUX.1, Qwen-Image and
            Z-Image do; 'scheduler' lets it space them itself, as the pipeline of Stable Diffusion 3 does, which shifts
            the smallest one twice: its last step starts at a sigma near 0 and does almost nothing.
        tokens: image tokens, for dynamic shifting.
        shift: a static shift instead of the configuration's.

    Returns:
        float64 [T + 1], descending from at most 1 to 0, with float32's values.

    Raises:
        ValueError: names the key, its value and what was expected.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    if grid not in FLOW_SPACINGS:
        raise ValueError(f"sampler.timestep_spacing is {grid!r}, expected one of {', '.join(FLOW_SPACINGS)} for a flow")
    config = dict(scheduler)
    total = int(config.get("num_train_timesteps", 1000))
    if not 1 <= steps <= total:
        raise ValueError(f"sampler.steps is {steps}, expected 1 to {total}")
    if shift is not None:
        if not shift > 0:
            raise ValueError(f"sampler.shift is {shift}, expected more than 0")
        config |= {"shift": shift, "use_dynamic_shifting": False}
    made = FlowMatchEulerDiscreteScheduler.from_config(config)
    if made.config.invert_sigmas or made.config.stochastic_sampling:
        key = "invert_sigmas" if made.config.invert_sigmas else "stochastic_sampling"
        raise ValueError(f"scheduler {key} is true, expected false")
    mu = None
    if made.config.use_dynamic_shifting:
        if tokens is None:
            raise ValueError("scheduler use_dynamic_shifting is true, and the number of image tokens is not known")
        mu = dynamic_shift(made.config, tokens)
    given = np.linspace(1.0, 1.0 / steps, steps) if grid == "linspace" else None
    try:
        made.set_timesteps(steps, sigmas=given, mu=mu)
        sigmas = made.sigmas.double().numpy()
    except OverflowError:  # of exp(mu)
        sigmas = np.full(steps + 1, np.nan)
    if not (np.diff(sigmas) < 0).all() or not 0 < sigmas[0] <= 1:
        large = "" if mu is None else f" for pictures of {tokens} image tokens (model.height, model.width)"
        raise ValueError(f"the scheduler's sigmas are {sigmas}{large}, expected to descend from at most 1 to 0")
    return sigmas


def dynamic_shift(scheduler: Mapping[str, Any], tokens: int) -> float:
    """mu, linear in the number of image tokens, as diffusers' pipelines compute it.

    Args:
        scheduler: with base_image_seq_len, max_image_seq_len, base_shift and max_shift.
    """
    low, high = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    least, most = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    slope = (most - least) / (high - low)
    return float(tokens * slope + least - slope * low)


def flow_transitions(
    sigmas: Float64, *, kind: str, eta: float, deterministic_final_steps: int = 0
) -> Transitions:
    """The transition table of a stochastic sampler of a rectified flow, see the top of this file.

    At sigma = 1, where Flow-SDE's noise level has a pole, 1 - sigma is replaced by 1 - sigmas[1], as its authors do.

    Args:
        sigmas: float64 [T + 1], descending to 0.
        kind: one of `FLOW_KINDS`.
        eta: noise level: a of flow_sde and cps, eta of dance_sde, gamma of edm_churn.
        deterministic_final_steps: last steps taken along the ODE. flow_sde and dance_sde leave the noise of their last
            step in the image, so take at least 1; cps ends without noise by itself.

    Raises:
        ValueError: names the key, its value and what was expected.
    """
    now, then = sigmas[:-1], sigmas[1:]
    steps, step = len(now), now - then
    if kind not in FLOW_KINDS:
        raise _wrong_kind(kind)
    if kind != "euler" and not eta > 0:
        raise ValueError(f"sampler.eta is {eta}, expected more than 0 for sampler.kind={kind}; euler draws no noise")
    if kind == "cps" and eta > 1:
        raise ValueError(f"sampler.eta is {eta}, expected at most 1 for sampler.kind=cps")
    if not 0 <= deterministic_final_steps < steps:
        raise ValueError(
            f"sampler.deterministic_final_steps is {deterministic_final_steps}, expected 0 to {steps - 1} for {steps} "
            "steps: at least one step must draw noise"
        )
    quiet_sample_coef, quiet_output_coef = np.ones(steps), -step
    if kind in ("cps", "edm_churn"):
        kept = math.cos(eta * math.pi / 2) if kind == "cps" else 1.0 / (1.0 + eta)
        drawn = math.sin(eta * math.pi / 2) if kind == "cps" else math.sqrt(1.0 - kept**2)
        sample_coef = (1.0 - then) + then * kept
        output_coef = -now * (1.0 - then) + (1.0 - now) * then * kept
        std = then * drawn
    else:
        if kind == "flow_sde":
            below = np.where(now < 1.0, 1.0 - now, 1.0 - sigmas[1])
            variance_rate = eta**2 * now / below
        else:
            variance_rate = np.full(steps, eta**2 if kind == "dance_sde" else 0.0)
        sample_coef = 1.0 - variance_rate * step / (2.0 * now)
        output_coef = -(1.0 + variance_rate * (1.0 - now) / (2.0 * now)) * step
        std = np.sqrt(variance_rate * step)
    if deterministic_final_steps:
        last = slice(steps - deterministic_final_steps, steps)
        sample_coef[last], output_coef[last], std[last] = quiet_sample_coef[last], quiet_output_coef[last], 0.0
    return Transitions(now, sample_coef, output_coef, std, quiet_sample_coef, quiet_output_coef)


def _wrong_kind(kind: str) -> ValueError:
    advice = (
        "; multistep consistency sampling of a flow is sampler=cps sampler.eta=1"
        if kind == "consistency"
        else ", such as by sampler=flow_sde or sampler=cps"
    )
    return ValueError(f"sampler.kind is {kind!r}, expected one of {', '.join(FLOW_KINDS)} for a flow{advice}")
