"""Draws groups of images with their denoising trajectories and the log-probs of every stored transition."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Literal

import numpy as np
import torch

from prdp.config import SamplerConfig
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.noise import ImageNoise
from prdp.diffusion.policy import Policy
from prdp.diffusion.process import column
from prdp.diffusion.transitions import Transitions, log_ratio, standardise
from prdp.diffusion.windows import mask, stored_latents, trained, trained_steps, windows
from prdp.types import Bool, Float32, Int64, PromptBatch, Rollout, Weights, stored_positions

Keep = Literal["trajectory", "final_latents"]


class Sampler:
    """Samples from a policy; a plain class that knows nothing of actors.

    Args:
        policy: of `prdp.diffusion`, with its reference kept.
        config: guidance of the policy and of the reference alike, or their ratio would not be 1 at the start; images
            per network call; the steps that draw noise.
        transitions: the table that the learner scores with; None takes that of the policy's process.
        keep: what is stored to learn from, the 'trajectory' or the 'final_latents'.
    """

    def __init__(
        self,
        policy: Policy,
        config: SamplerConfig,
        transitions: Transitions | None = None,
        keep: Keep = "trajectory",
    ) -> None:
        self._policy = policy
        self._config = config
        self._transitions = transitions or policy.process.transitions(config)
        trained_steps(config, self._transitions.noisy)  # refuses a window that has no such steps
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

        With `trajectory`, what is learned from is stored: the chosen transitions with noise, and their log-ratio of
        this policy to the reference, which costs one more network pass a step (none for version 0, which is the
        reference); or, by a sampler that keeps final latents, these alone. Trajectories are drawn in float32 whatever
        the policy's precision, so that their log-probs are those of the policy that drew them.
        """
        start = time.perf_counter()
        keep_final = trajectory and self._keep == "final_latents"
        trajectory = trajectory and self._keep == "trajectory"
        count = len(prompts) * images_per_prompt
        groups = np.repeat(np.arange(len(prompts)), images_per_prompt)
        numbers = np.tile(np.arange(images_per_prompt), len(prompts))
        config, table = self._config, self._transitions
        conditions = self._policy.encode(prompts.texts)
        positions = prompts.offset + np.arange(len(prompts))
        noisy = windows(config, table.noisy, seed, prompts.epoch, positions)
        chosen = trained(config, noisy, seed, prompts.epoch, positions)
        if not trajectory:
            chosen = chosen[:, :0]
        parts = []
        with self._policy.float32() if trajectory else nullcontext():
            for begin in range(0, count, config.microbatch):
                rows = slice(begin, min(begin + config.microbatch, count))
                noise = ImageNoise(
                    seed,
                    prompts.epoch,
                    prompts.offset + groups[rows],
                    numbers[rows],
                    self._policy.latent_shape,
                    config.shared_start_noise,
                )
                with_noise = mask(noisy[groups[rows]], len(table))
                parts.append(self._sample_batch(conditions[groups[rows]], noise, with_noise, chosen[groups[rows]]))
        latents, outputs, ratios, images, final = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return Rollout(
            prompts=prompts,
            images_per_prompt=images_per_prompt,
            latents=latents,
            reference_output=outputs,
            log_ratio=ratios,
            steps=chosen[groups],
            images=images,
            weights_version=self._version,
            weights_checksum=self._checksum,
            seconds={"sample": time.perf_counter() - start},
            final_latents=final if keep_final else None,
        )

    def _sample_batch(
        self, conditions: Conditions, noise: ImageNoise, with_noise: Bool, chosen: Int64
    ) -> tuple[Float32, Float32, Float32, np.ndarray, Float32]:
        """Args: with_noise: bool [B, T], the steps that draw noise; chosen: int64 [B, S], those that are stored."""
        table, policy = self._transitions, self._policy
        count, shape, device = len(conditions), policy.latent_shape, policy.device
        stored = chosen.shape[1]
        before = stored_positions(chosen)
        length = stored_latents(self._config, table.noisy) if stored else 0
        kept = np.zeros((count, length, *shape), np.float32)
        outputs = np.empty((count, stored, *shape), np.float32)
        ratios = np.empty((count, stored), np.float32)
        latents = torch.from_numpy(noise.draw()).to(device)
        can_draw = table.sigma > 0
        for step in range(len(table)):
            times = torch.full((count,), float(table.times[step]), device=device)
            output = policy.output(latents, times, conditions, self._config.guidance_scale)
            sample_coef, output_coef, sigma = (
                value if isinstance(value, float) else column(value, latents)
                for value in table.coefficients(step, with_noise[:, step])
            )
            following = sample_coef * latents + output_coef * output
            if can_draw[step]:
                # Also where no image draws: the noise of a step must not depend on the window.
                draw = torch.from_numpy(noise.draw()).to(device)
                following = following if isinstance(sigma, float) and not sigma else following + sigma * draw
            rows, columns = np.nonzero(chosen == step)
            if len(rows):
                picked = [latents, times, following, output]
                of_rows = conditions
                if len(rows) < count:
                    index = torch.from_numpy(rows).to(device)
                    picked, of_rows = [value[index] for value in picked], conditions[rows]
                x, at, then, current = picked
                reference = self._reference_output(x, at, of_rows, current)
                z, difference = standardise(
                    table, torch.full((len(rows),), step, device=device), x, then, current, reference
                )
                places = before[rows, columns]
                kept[rows, places] = x.cpu().numpy()
                kept[rows, places + 1] = then.cpu().numpy()
                outputs[rows, columns] = reference.cpu().numpy()
                ratios[rows, columns] = log_ratio(z, difference).cpu().numpy()
            latents = following
        return kept, outputs, ratios, policy.decode(latents), latents.cpu().numpy()

    def _reference_output(
        self, latents: torch.Tensor, times: torch.Tensor, conditions: Conditions, output: torch.Tensor
    ) -> torch.Tensor:
        if self._version == 0:
            return output
        with self._policy.reference() as network:
            return self._policy.output(latents, times, conditions, self._config.guidance_scale, network)
