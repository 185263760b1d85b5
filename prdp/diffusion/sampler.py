"""Draws groups of images with their denoising trajectories and the log-probs of every stored transition."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Literal

import numpy as np
import torch

from prdp.diffusion.noise import ImageNoise
from prdp.diffusion.policy import Policy
from prdp.diffusion.transitions import Transitions, log_ratio, reference_log_prob
from prdp.types import Float32, PromptBatch, Rollout, Weights

Keep = Literal["trajectory", "final_latents"]


class Sampler:
    """Samples from a policy; a plain class that knows nothing of actors.

    Args:
        policy: of `prdp.diffusion`, with its reference kept.
        transitions: the same table that the learner scores with.
        guidance_scale: of the policy and of the reference alike, or their ratio would not be 1 at the start.
        microbatch: images per network call.
        keep: what is stored to learn from, the 'trajectory' or the 'final_latents'.
    """

    def __init__(
        self,
        policy: Policy,
        transitions: Transitions,
        guidance_scale: float,
        microbatch: int,
        keep: Keep = "trajectory",
    ) -> None:
        self._policy = policy
        self._transitions = transitions
        self._guidance_scale = guidance_scale
        self._microbatch = microbatch
        self._keep = keep
        start = policy.weights.export(0)
        self._version, self._checksum = start.version, start.checksum

    def load_weights(self, weights: Weights) -> tuple[int, str]:
        """Bind every tensor or raise; returns (version, checksum of the tensors as bound)."""
        self._checksum = self._policy.weights.bind(weights)
        self._version = weights.version
        return self._version, self._checksum

    @torch.no_grad()
    def sample(self, prompts: PromptBatch, images_per_prompt: int, seed: int, trajectory: bool = True) -> Rollout:
        """Sample `images_per_prompt` images of each prompt; a pure function of the arguments and the weights.

        With `trajectory`, what is learned from is stored: the stochastic transitions with their log-probs under this
        policy and under the reference, which costs one more network pass a step (none for version 0, which is the
        reference); or, by a sampler that keeps final latents, these alone. Trajectories are drawn in float32 whatever
        the policy's precision, so that their log-probs are those of the policy that drew them.
        """
        start = time.perf_counter()
        keep_final = trajectory and self._keep == "final_latents"
        trajectory = trajectory and self._keep == "trajectory"
        count = len(prompts) * images_per_prompt
        groups = np.repeat(np.arange(len(prompts)), images_per_prompt)
        numbers = np.tile(np.arange(images_per_prompt), len(prompts))
        states = self._policy.encode_prompts(prompts.texts)
        parts = []
        with self._policy.float32() if trajectory else nullcontext():
            for begin in range(0, count, self._microbatch):
                rows = slice(begin, min(begin + self._microbatch, count))
                noise = ImageNoise(
                    seed, prompts.epoch, prompts.offset + groups[rows], numbers[rows], self._policy.latent_shape
                )
                of_images = states[torch.from_numpy(groups[rows]).to(states.device)]
                parts.append(self._sample_batch(of_images, noise, trajectory))
        latents, outputs, log_probs, ratios, images, final = (
            np.concatenate(arrays) for arrays in zip(*parts, strict=True)
        )
        return Rollout(
            prompts=prompts,
            images_per_prompt=images_per_prompt,
            latents=latents,
            reference_output=outputs,
            log_prob_ref=log_probs,
            log_ratio=ratios,
            images=images,
            weights_version=self._version,
            weights_checksum=self._checksum,
            seconds={"sample": time.perf_counter() - start},
            final_latents=final if keep_final else None,
        )

    def _sample_batch(
        self, states: torch.Tensor, noise: ImageNoise, trajectory: bool
    ) -> tuple[Float32, Float32, Float32, Float32, np.ndarray, Float32]:
        table, policy = self._transitions, self._policy
        count, shape = len(states), policy.latent_shape
        device = states.device
        stored = table.stochastic_steps if trajectory else 0
        kept = np.empty((count, stored + bool(trajectory), *shape), np.float32)
        outputs = np.empty((count, stored, *shape), np.float32)
        log_probs, ratios = np.empty((count, stored), np.float32), np.empty((count, stored), np.float32)
        latents = torch.from_numpy(noise.draw()).to(device)
        if trajectory:
            kept[:, 0] = latents.cpu().numpy()
        for step in range(len(table)):
            timesteps = torch.full((count,), int(table.timesteps[step]), device=device)
            output = policy.output(latents, timesteps, states, self._guidance_scale)
            mean = table.mean(step, latents, output)
            if step < table.stochastic_steps:
                draw = torch.from_numpy(noise.draw()).to(device)
                following = mean + float(table.sigma[step]) * draw
            else:
                following = mean
            if step < stored:
                reference = self._reference_output(latents, timesteps, states, output)
                z, difference = standardise(
                    table, torch.full((count,), step, device=device), latents, following, output, reference
                )
                sigma = torch.full((count,), float(table.sigma[step]), device=device)
                kept[:, step + 1] = following.cpu().numpy()
                outputs[:, step] = reference.cpu().numpy()
                log_probs[:, step] = reference_log_prob(z, sigma).cpu().numpy()
                ratios[:, step] = log_ratio(z, difference).cpu().numpy()
            latents = following
        return kept, outputs, log_probs, ratios, policy.decode(latents), latents.cpu().numpy()

    def _reference_output(
        self, latents: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor:
        if self._version == 0:
            return output
        with self._policy.reference() as network:
            return self._policy.output(latents, timesteps, states, self._guidance_scale, network)


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
        steps: int64 [B], row of the table for each cell.
        latents, following: x_t and x_{t-1}, float32 [B, C, h, w].
        output, reference: network outputs of the policy and of the reference, float32 [B, C, h, w].
    """

    def column(values: np.ndarray) -> torch.Tensor:
        rows = torch.from_numpy(values).to(latents.device, latents.dtype)[steps]
        return rows.view(-1, *[1] * (latents.dim() - 1))

    sample_coef, output_coef, sigma = column(table.sample_coef), column(table.output_coef), column(table.sigma)
    noise = (following - (sample_coef * latents + output_coef * reference)) / sigma
    return noise, output_coef / sigma * (output - reference)
