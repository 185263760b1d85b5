"""What an epoch takes on this machine, from a few passes that are measured here and the passes that a run takes."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

from prdp.config import TrainConfig
from prdp.configuration.network_passes import branches_of, checked_passes, image_passes, noisy_steps
from prdp.types import PromptBatch

_REPEATS = 2
"""After one that warms up; the quickest counts."""


@dataclass(frozen=True)
class EpochTime:
    """Seconds of each stage of an epoch, of one process.

    Attributes:
        sample, score, learn: seconds.
        parts: what was measured -> seconds.
        peak: bytes that were held at most: on the GPU, or by this process.
    """

    sample: float
    score: float
    learn: float
    parts: Mapping[str, float]
    peak: int

    def epoch(self, config: TrainConfig) -> float:
        """Seconds of an epoch: stages in turns in one process, and shared out among the actors and ranks of a cluster.

        Scoring goes on while actors sample, and with stale rollouts sampling goes on while the learner learns.
        """
        cluster = config.cluster
        learn = self.learn / cluster.learners
        if cluster.kind == "inline":
            return self.sample + self.score + learn
        sample = max(self.sample / cluster.samplers, self.score / cluster.reward_actors)
        return max(sample, learn) if cluster.max_staleness else sample + learn

    def text(self, config: TrainConfig) -> str:
        """For people."""
        parts = "\n".join(f"    {name}: {seconds:.3g} s" for name, seconds in self.parts.items())
        return (
            f"  measured here, one process: an epoch takes {self.sample:.3g} s to sample, {self.score:.3g} s to score, "
            f"{self.learn:.3g} s to learn\n{parts}\n"
            f"  so an epoch takes about {self.epoch(config):.3g} s, and {config.epochs:,} epochs "
            f"{self.epoch(config) * config.epochs / 3600:.2g} h, evaluations and start left out; "
            f"at most {self.peak / 2**30:.1f} GiB were held"
        )


def measure_epoch(
    config: TrainConfig, prompts: PromptBatch, clock: Callable[[], float] = time.perf_counter
) -> EpochTime:
    """Measure a microbatch of each kind of work: encoding, a pass, decoding, scoring, a pass with gradient.

    Args:
        config: of a run that could start here.
        prompts: that it trains on, at least one; they come again where more are needed.
        clock: in seconds.
    """
    import numpy as np
    import torch

    from prdp.diffusion import build_policy
    from prdp.objectives import build_objective
    from prdp.rewards import build_reward
    from prdp.rewards.scoring import scored

    objective, sampler, learner = build_objective(config.objective), config.sampler, config.learner
    recorder = objective.evidence.recorder(objective.arrays)
    images = config.prompts_per_epoch * config.images_per_prompt
    cells = images * objective.evidence.columns(sampler, noisy_steps(sampler))
    policy = build_policy(config.model, learner, seed=config.seed, keep_reference=False)
    gpu = policy.device.type == "cuda"

    def seconds(work: Callable[[], object]) -> float:
        taken = []
        for _ in range(1 + _REPEATS):
            start = clock()
            work()
            if gpu:
                torch.cuda.synchronize(policy.device)
            taken.append(clock() - start)
        return min(taken[1:])

    def inputs(count: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(count, *policy.latent_shape, generator=generator).to(policy.device)
        middle = float(policy.process.transitions(sampler).times[sampler.steps // 2])
        texts = [prompts.texts[row % len(prompts)] for row in range(count)]
        return latents, torch.full((count,), middle, device=policy.device), texts

    drawn = min(sampler.microbatch, sampler.prompts_per_chunk * config.images_per_prompt, images)
    latents, times, texts = inputs(drawn)
    parts, scale = {}, sampler.guidance_scale
    with torch.no_grad():
        conditions = policy.encode(texts)
        parts[f"encoding {drawn} prompts"] = encode = seconds(lambda: policy.encode(texts))
        with policy.float32() if recorder.needs_float32 else nullcontext():
            work = lambda: policy.output(latents, times, conditions, scale)  # noqa: E731
            parts[f"a step of {drawn} images"] = step = seconds(work)
        pictures = policy.decode(latents)
        parts[f"decoding {drawn} images"] = decode = seconds(lambda: policy.decode(latents))

    reward = build_reward(config.reward)
    metadata = [prompts.metadata[row % len(prompts)] for row in range(drawn)]
    score = seconds(lambda: scored(reward, np.asarray(pictures), texts, metadata))
    parts[f"scoring {drawn} images"] = score

    learned = min(learner.microbatch, cells)
    latents, times, texts = inputs(learned)
    conditions = policy.encode(texts)

    def gradient() -> None:
        policy.output(latents, times, conditions, scale).square().mean().backward()
        for value in policy.weights.parameters.values():
            value.grad = None

    parts[f"forward and backward of {learned} cells"] = backward = seconds(gradient)
    in_half = config.learner.evidence_precision == "half"
    with torch.no_grad(), nullcontext() if in_half else policy.float32():
        evidence = seconds(lambda: policy.output(latents, times, conditions, scale))

    passes, branches = image_passes(config), branches_of(config.model, scale)
    without = images * passes.evidence + checked_passes(config)
    if without:
        parts[f"evidence of {learned} cells"] = evidence
    sampled = (passes.policy + passes.reference) / branches * step / drawn + (passes.policy > 0) * decode / drawn
    return EpochTime(
        sample=images * sampled + config.prompts_per_epoch * encode / drawn,
        score=images * score / drawn,
        learn=(images * passes.gradient * backward + without * evidence) / branches / learned,
        parts=parts,
        peak=torch.cuda.max_memory_allocated(policy.device) if gpu else _process_peak(),
    )


def _process_peak() -> int:
    """Bytes; macOS counts bytes where Linux counts KiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
