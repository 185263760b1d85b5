"""Draws what was drawn before, or begins with pictures: some images once more, image to image, by a ControlNet."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from prdp.diffusion.control import FIELD, as_control, load_control
from prdp.diffusion.noise import ImageNoise
from prdp.diffusion.recording import Chains
from prdp.diffusion.sampler import Sampler, Start
from prdp.diffusion.windows import windows
from prdp.types import Float32, Int64, PromptBatch, Rollout, UInt8


@dataclass(frozen=True)
class Redrawn:
    """Images that were drawn once more.

    Attributes:
        images: uint8 [r, H, W, 3].
        latents: float32 [r, C, h, w], what they were decoded from.
        network_passes: for each of them.
    """

    images: UInt8
    latents: Float32
    network_passes: float


class RedrawingSampler(Sampler):
    """See `Sampler`."""

    def latents_of(self, pictures: UInt8) -> Float32:
        """Clean latents float32 [n, C, h, w] of pictures uint8 [n, H, W, 3], by the model's VAE."""
        return self._microbatch.fitted(partial(self._latents_of, pictures), lambda: len(pictures))

    @torch.no_grad()
    def _latents_of(self, pictures: UInt8) -> Float32:
        size = self._microbatch.size
        parts = [
            self._policy.encode_images(pictures[begin : begin + size]).cpu().numpy()
            for begin in range(0, len(pictures), size)
        ]
        return np.concatenate(parts)

    def put_control(self, path: str, scale: float) -> None:
        """Draw by a ControlNet wherever pictures are given for it.

        Raises:
            StartError: see `prdp.diffusion.control.load_control`.
        """
        policy: Any = self._policy
        policy.control = load_control(path, scale, policy.network)

    def controlled(self, prompts: PromptBatch, images_per_prompt: int, seed: int, pictures: UInt8) -> Rollout:
        """Images by a ControlNet, of the noise of `sample`.

        Args:
            pictures: uint8 [p, H, W, 3], what it reads: one of each prompt.

        Returns:
            a rollout with final latents.
        """
        begun = time.perf_counter()
        rows = np.arange(len(prompts) * images_per_prompt)
        drawn = self.again(prompts, images_per_prompt, seed, rows, fresh=False, control=pictures)
        return self._rollout(prompts, images_per_prompt, drawn, begun)

    def edit(
        self, prompts: PromptBatch, images_per_prompt: int, seed: int, pictures: UInt8, first: int
    ) -> Rollout:
        """Image to image: pictures are noised to the level of a step, and drawn from there on for their prompts.

        Args:
            pictures: uint8 [p, H, W, 3], one of each prompt.
            first: that step; the noise is that of `sample`.

        Returns:
            a rollout with final latents.

        Raises:
            ValueError: a step that there is not; latents that are not finite.
        """
        begun = time.perf_counter()
        rows = np.arange(len(prompts) * images_per_prompt)
        clean = self.latents_of(pictures)[rows // images_per_prompt]
        drawn = self.again(prompts, images_per_prompt, seed, rows, (clean, first), fresh=False)
        return self._rollout(prompts, images_per_prompt, drawn, begun)

    def _rollout(self, prompts: PromptBatch, images_per_prompt: int, drawn: Redrawn, begun: float) -> Rollout:
        fields, empty = self.encode(prompts.texts).to_arrays()
        return Rollout(
            prompts=prompts,
            images_per_prompt=images_per_prompt,
            images=drawn.images,
            weights_version=self._version,
            weights_checksum=self._checksum,
            stored={"final_latents": drawn.latents},
            conditions=fields,
            empty_conditions=empty,
            seconds={"sample": time.perf_counter() - begun},
            network_passes=np.full(len(drawn.images), drawn.network_passes),
        )

    def again(
        self,
        prompts: PromptBatch,
        images_per_prompt: int,
        seed: int,
        rows: Int64,
        refined: Start | None = None,
        fresh: bool = True,
        control: UInt8 | None = None,
    ) -> Redrawn:
        """Some images of a rollout once more, of noise that none of its images has.

        Args:
            prompts, images_per_prompt, seed: of the rollout.
            rows: int64 [r], which of its images, prompt-major.
            refined: clean latents [r, C, h, w] that are noised to the level of a step, and that step, from which on
                they are drawn; None draws from noise.
            fresh: False takes the noise of the rollout's own images, so that without `refined` they are drawn as
                `sample` draws them.
            control: uint8 [p, H, W, 3], what a ControlNet reads of each prompt.

        Raises:
            ValueError: latents that do not fit, or a step that there is not; latents that are not finite.
        """
        work = partial(self._again, prompts, images_per_prompt, seed, rows, refined, fresh, control)
        return self._microbatch.fitted(work, lambda: len(rows), f"epoch {prompts.epoch}")

    @torch.no_grad()
    def _again(
        self,
        prompts: PromptBatch,
        images_per_prompt: int,
        seed: int,
        rows: Int64,
        refined: Start | None,
        fresh: bool,
        control: UInt8 | None,
    ) -> Redrawn:
        config, table, process = self._config, self._transitions, self._policy.process
        clean, first = (None, 0) if refined is None else self._started(refined, len(rows), trajectory=False)
        of_prompts, numbers = rows // images_per_prompt, rows % images_per_prompt
        numbers = numbers + images_per_prompt if fresh else numbers
        conditions = self.encode(prompts.texts)
        if control is not None:
            seen = as_control(control).to(self._policy.device)
            conditions = replace(conditions, fields={**conditions.fields, FIELD: seen})
        noisy = windows(config, table.noisy, seed, prompts.epoch, prompts.offset + np.arange(len(prompts)))
        pictures, finals = [], []
        for begin in range(0, len(rows), self._microbatch.size):
            part = slice(begin, begin + self._microbatch.size)
            chosen = of_prompts[part]
            noise = ImageNoise(
                seed, prompts.epoch, prompts.offset + chosen, numbers[part], self._policy.latent_shape
            )
            chains = Chains(
                policy=self._policy,
                transitions=table,
                config=config,
                conditions=conditions[chosen],
                prompts=prompts.offset + chosen,
                noisy=noisy[chosen],
                seed=seed,
                epoch=prompts.epoch,
                at_start=self._version == 0,
            )
            start = None
            if clean is not None:
                times = np.full(len(chosen), table.times[first])
                latents, drawn = torch.from_numpy(clean[part]), torch.from_numpy(noise.peek())
                start = process.noised(latents, times, drawn)[0].numpy()
            latents = self._draw(chains, noise, None, first, start)
            self._check_finite(latents, prompts, chosen, numbers[part])
            pictures.append(self._policy.decode(latents))
            finals.append(latents.cpu().numpy())
        return Redrawn(np.concatenate(pictures), np.concatenate(finals), (len(table) - first) * self._branches)
