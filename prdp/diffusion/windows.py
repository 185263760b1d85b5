"""Which steps draw noise, and which of these are learned from: windows over the steps of a sampler.

A window of fewer steps is less work for the learner, and trajectories outside it are deterministic, which attributes a
reward to the window's steps (MixGRPO, arXiv:2507.21802; Flow-GRPO-Fast). All of it is a pure function of (seed, epoch,
prompt), so that no actor and no chunk can change it.
"""

from __future__ import annotations

import numpy as np

from prdp.config import WINDOWS, SamplerConfig
from prdp.types import Bool, Int64

_DOMAIN = 0x77696E646F77


def window_size(sampler: SamplerConfig, noisy: Int64) -> int:
    """Steps of a trajectory that draw noise.

    Args:
        noisy: int64 [S], the steps that can, see `Transitions.noisy`.

    Raises:
        ValueError: names the key, its value and what was expected.
    """
    if sampler.window not in WINDOWS:
        raise ValueError(f"sampler.window is {sampler.window!r}, expected one of {', '.join(WINDOWS)}")
    if sampler.window == "all":
        return len(noisy)
    if not 1 <= sampler.window_size <= len(noisy):
        raise ValueError(
            f"sampler.window_size is {sampler.window_size}, expected 1 to {len(noisy)}, the number of steps that can "
            "draw noise"
        )
    last = len(noisy) - sampler.window_size
    if not 0 <= sampler.window_start <= last:
        raise ValueError(f"sampler.window_start is {sampler.window_start}, expected 0 to {last}")
    if sampler.window_end is not None and not sampler.window_start + sampler.window_size <= sampler.window_end:
        raise ValueError(
            f"sampler.window_end is {sampler.window_end}, expected at least "
            f"{sampler.window_start + sampler.window_size}, the end of the first window"
        )
    if sampler.window_end is not None and sampler.window_end > len(noisy):
        raise ValueError(
            f"sampler.window_end is {sampler.window_end}, expected at most {len(noisy)}, the number of steps that can "
            "draw noise"
        )
    return sampler.window_size


def trained_steps(sampler: SamplerConfig, noisy: Int64) -> int:
    """T of the evidence: the steps of each image that are stored and learned from; 0 where none draws noise."""
    size = window_size(sampler, noisy)
    if not 0 < sampler.trained_share <= 1:
        raise ValueError(f"sampler.trained_share is {sampler.trained_share}, expected more than 0 and at most 1")
    return _share(sampler, size)


def stored_latents(sampler: SamplerConfig, noisy: Int64) -> int:
    """How many latents a trajectory has to keep, at most."""
    size, trained = window_size(sampler, noisy), trained_steps(sampler, noisy)
    runs = min(trained, size - trained + 1)
    return trained + (runs if trained < size else _runs(noisy))


def _share(sampler: SamplerConfig, size: int) -> int:
    return max(min(1, size), round(size * sampler.trained_share))


def _runs(rows: Int64) -> int:
    return 1 + int((np.diff(rows) > 1).sum()) if len(rows) else 0


def windows(sampler: SamplerConfig, noisy: Int64, seed: int, epoch: int, prompts: Int64) -> Int64:
    """The steps that draw noise, int64 [prompts, W], ascending.

    Args:
        noisy: int64 [S], the steps that can.
        epoch: a sliding window moves on by one every `window_every` epochs, and starts anew at its end.
        prompts: int64, positions in the epoch; a random window is drawn for each.
    """
    size = window_size(sampler, noisy)
    end = len(noisy) if sampler.window_end is None else sampler.window_end
    places = end - sampler.window_start - size + 1
    if sampler.window == "all":
        starts = np.zeros(len(prompts), np.int64)
    elif sampler.window == "fixed":
        starts = np.full(len(prompts), sampler.window_start)
    elif sampler.window == "sliding":
        starts = np.full(len(prompts), sampler.window_start + epoch // sampler.window_every % places)
    else:
        starts = np.array(
            [sampler.window_start + _stream(seed, epoch, int(prompt), 0).integers(places) for prompt in prompts],
            np.int64,
        )
    return noisy[starts[:, None] + np.arange(size)]


def trained(sampler: SamplerConfig, noise: Int64, seed: int, epoch: int, prompts: Int64) -> Int64:
    """Of the steps that draw noise [prompts, W] those that are learned from, int64 [prompts, T], ascending."""
    size = noise.shape[1]
    count = _share(sampler, size)
    if count == size:
        return noise
    chosen = [np.sort(_stream(seed, epoch, int(prompt), 1).permutation(size)[:count]) for prompt in prompts]
    return np.take_along_axis(noise, np.stack(chosen), axis=1)


def mask(steps: Int64, total: int) -> Bool:
    """Bool [n, total], true at the given steps [n, W]."""
    chosen = np.zeros((len(steps), total), np.bool_)
    np.put_along_axis(chosen, steps, True, axis=1)
    return chosen


def _stream(seed: int, epoch: int, prompt: int, use: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((_DOMAIN, seed, epoch, prompt, use))))
