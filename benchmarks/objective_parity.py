"""DDPO here against TRL's trainer: evidence, running statistics, loss and gradient, on the same random numbers.

    pip install trl==0.23.1      # the last releases that had the trainer end with this one
    python benchmarks/objective_parity.py [--epochs 12]

Twelve prompts come back over the epochs, so that per-prompt statistics and the fallback to the batch's both occur; the
policy that is judged is not the one that sampled, so that the clip is active. Largest differences are printed.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from diffusers import DDIMScheduler
from trl.models.modeling_sd_base import scheduler_step
from trl.trainer.ddpo_trainer import DDPOTrainer
from trl.trainer.utils import PerPromptStatTracker

from prdp.diffusion.transitions import Transitions, log_ratio, standardise
from prdp.diffusion.variance_preserving import build_transitions
from prdp.learners.history import RewardHistory
from prdp.objectives import build_objective

STEPS, IMAGES, SHAPE = 10, 16, (4, 8, 8)
CLIP_RANGE, ADVANTAGE_CLIP, BUFFER, LEAST = 0.002, 5.0, 16, 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    epochs = parser.parse_args().epochs
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(STEPS)
    transitions = build_transitions(scheduler.config, steps=STEPS)
    tracker, history = PerPromptStatTracker(BUFFER, LEAST), RewardHistory(BUFFER)
    knobs = {"clip_range": CLIP_RANGE, "advantage_clip": ADVANTAGE_CLIP, "buffer_size": BUFFER, "min_count": LEAST}
    objective = build_objective({"name": "ddpo", **knobs})
    rng, worst = np.random.default_rng(0), dict.fromkeys(("log-ratio", "loss", "gradient"), 0.0)
    fallback, clipfrac = [], []
    for epoch in range(epochs):
        prompts = [f"prompt {number}" for number in rng.integers(12, size=IMAGES // 2).repeat(2)]
        rewards = rng.normal(size=IMAGES)
        theirs, evidence = _log_ratios(scheduler, transitions, epoch)
        worst["log-ratio"] = max(worst["log-ratio"], float((theirs - (evidence[0] - evidence[1])).abs().max()))

        advantages = tracker.update(np.array(prompts), rewards)
        clipped = torch.tensor(advantages).clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP)[:, None]
        difference = (evidence[0] - evidence[1]).double().requires_grad_()
        loss = DDPOTrainer.loss(None, clipped, CLIP_RANGE, difference.exp())
        (gradient,) = torch.autograd.grad(loss, difference)

        data = {"rewards": rewards, "history": history.including(epoch, prompts, rewards)}
        history.remember(epoch, prompts, rewards)
        ours = objective.coefficients({"log_importance": evidence[0] - evidence[1]}, data)
        worst["loss"] = max(worst["loss"], abs(ours.loss - loss.item()))
        worst["gradient"] = max(
            worst["gradient"],
            float(np.abs(ours.tables["log_importance"] - gradient.numpy()).max() / gradient.abs().max()),
        )
        fallback.append(ours.metrics["batch_normalised"])
        clipfrac.append(ours.metrics["clipfrac"])
    shares = f"batch statistics for {np.mean(fallback):.0%} of images, {np.mean(clipfrac):.0%} of ratios clipped"
    print(f"{epochs} epochs; {shares}")
    print("largest differences:", ", ".join(f"{name} {value:.2g}" for name, value in worst.items()))


def _log_ratios(
    scheduler: DDIMScheduler, transitions: Transitions, seed: int
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """log pi_theta / pi_old by TRL's step, [n, T], and ours of both policies to a reference, each [n, T]."""
    generator = torch.Generator().manual_seed(seed)
    theirs, now, old = [], [], []
    for step, timestep in enumerate(scheduler.timesteps):
        x, before, reference = (torch.randn(IMAGES, *SHAPE, generator=generator) for _ in range(3))
        after = before + 0.02 * torch.randn(IMAGES, *SHAPE, generator=generator)
        following = scheduler_step(scheduler, before, timestep, x, eta=1.0).latents
        logs = [
            scheduler_step(scheduler, output, timestep, x, eta=1.0, prev_sample=following).log_probs
            for output in (after, before)
        ]
        theirs.append(logs[0] - logs[1])
        rows = torch.full((IMAGES,), step)
        for column, output in ((now, after), (old, before)):
            column.append(log_ratio(*standardise(transitions, rows, x, following, output, reference)))
    return torch.stack(theirs, 1), (torch.stack(now, 1), torch.stack(old, 1))


if __name__ == "__main__":
    main()
