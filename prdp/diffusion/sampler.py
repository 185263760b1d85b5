"""Draws groups of images, and lets a recorder keep on the way what is learned from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch

from prdp.config import SamplerConfig
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.guidance import guided
from prdp.diffusion.noise import ImageNoise
from prdp.diffusion.policy import Policy
from prdp.diffusion.precision import conversions_kept
from prdp.diffusion.process import column
from prdp.diffusion.recording import Chains, Recorder, Recording
from prdp.diffusion.transitions import Transitions
from prdp.diffusion.windows import mask, trained_steps, windows
from prdp.support.microbatches import SAMPLER_ADVICE, Microbatch, give_back
from prdp.types import Float32, Int64, PromptBatch, Rollout, Weights

Start = tuple[Float32, int]
"""Latents [n, C, h, w] at the noise level of a step, and the number of that step."""


class Sampler:
    """Samples from a policy; a plain class that knows nothing of actors.

    Args:
        policy: of `prdp.diffusion`, with its reference kept if the recorder needs it.
        config: guidance of the policy and of the reference alike, or their ratio would not be 1 at the start; images
            per network call; the steps that draw noise.
        transitions: the table that the learner scores with; None takes that of the policy's process.
        recorder: keeps what is learned from; None for a sampler of images alone.
    """

    def __init__(
        self,
        policy: Policy,
        config: SamplerConfig,
        transitions: Transitions | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._policy = policy
        self._config = config
        self._microbatch = Microbatch("sampler.microbatch", config.microbatch, SAMPLER_ADVICE, lambda size: give_back())
        self._transitions = transitions or policy.process.transitions(config)
        trained_steps(config, self._transitions.noisy)  # refuses a window that has no such steps
        self._recorder = recorder
        start = policy.weights.export(0)
        self._version, self._checksum = start.version, start.checksum

    @property
    def policy(self) -> Policy:
        """That it samples from."""
        return self._policy

    @property
    def holds(self) -> tuple[int, str]:
        """(version, checksum) of the weights that it has."""
        return self._version, self._checksum

    def load_weights(self, weights: Weights) -> tuple[int, str]:
        """Bind every tensor or raise; returns (version, checksum of the tensors as bound)."""
        self._checksum = self._policy.weights.bind(weights)
        self._version = weights.version
        return self._version, self._checksum

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Conditions:
        """What prompts become for the network, a row each."""
        negative = self._config.negative_prompt
        return self._policy.encode(texts) if negative is None else self._policy.encode(texts, negative)

    def sample(
        self,
        prompts: PromptBatch,
        images_per_prompt: int,
        seed: int,
        trajectory: bool = True,
        start: Start | None = None,
    ) -> Rollout:
        """Sample `images_per_prompt` images of each prompt; a pure function of the arguments and the weights.

        Args:
            trajectory: whether the recorder keeps what is learned from, with the conditions of the prompts. Its passes
                of the reference come on top, but for version 0, which is the reference.
            start: latents to begin with, prompt-major, and the step to begin at; the steps before it are left out, and
                the noise of the others is that of whole chains. None begins with noise at step 0.

        Raises:
            ValueError: there is no recorder to keep anything; a start that does not fit, or together with
                `trajectory`; latents that are not finite, which names the image.
            MemoryShortError: no single image fits into memory; several are halved until they do.
        """
        work = partial(self._sample, prompts, images_per_prompt, seed, trajectory, start)
        rows, where = len(prompts) * images_per_prompt, f"epoch {prompts.epoch}"
        return self._microbatch.fitted(work, lambda: rows, where)

    @torch.no_grad()
    def _sample(
        self, prompts: PromptBatch, images_per_prompt: int, seed: int, trajectory: bool, start: Start | None
    ) -> Rollout:
        begun = time.perf_counter()
        recorder = self._recorder if trajectory else None
        if trajectory and recorder is None:
            raise ValueError("this sampler was built without a recorder, and can only sample with trajectory=False")
        count = len(prompts) * images_per_prompt
        groups = np.repeat(np.arange(len(prompts)), images_per_prompt)
        numbers = np.tile(np.arange(images_per_prompt), len(prompts))
        config, table = self._config, self._transitions
        given, first = (None, 0) if start is None else self._started(start, count, trajectory)
        conditions = self.encode(prompts.texts)
        noisy = windows(config, table.noisy, seed, prompts.epoch, prompts.offset + np.arange(len(prompts)))
        pictures, kept = [], []
        with self._policy.float32() if recorder is not None and recorder.needs_float32 else nullcontext():
            for begin in range(0, count, self._microbatch.size):
                rows = slice(begin, min(begin + self._microbatch.size, count))
                of_prompts = groups[rows]
                positions = prompts.offset + of_prompts
                noise = ImageNoise(
                    seed,
                    prompts.epoch,
                    positions,
                    numbers[rows],
                    self._policy.latent_shape,
                    # Evaluations judge images that are drawn independently.
                    shared_start=config.shared_start_noise and trajectory,
                    start_churn=config.start_churn,
                )
                chains = Chains(
                    policy=self._policy,
                    transitions=table,
                    config=config,
                    conditions=conditions[of_prompts],
                    prompts=positions,
                    noisy=noisy[of_prompts],
                    seed=seed,
                    epoch=prompts.epoch,
                    at_start=self._version == 0,
                )
                recording = None if recorder is None else recorder.start(chains)
                latents = self._draw(chains, noise, recording, first, None if given is None else given[rows])
                self._check_finite(latents, prompts, of_prompts, numbers[rows])
                pictures.append(self._policy.decode(latents))
                kept.append({} if recording is None else _of_images(recording.finish(latents), len(latents)))
        fields, empty = conditions.to_arrays() if recorder is not None else ({}, {})
        return Rollout(
            prompts=prompts,
            images_per_prompt=images_per_prompt,
            images=np.concatenate(pictures),
            weights_version=self._version,
            weights_checksum=self._checksum,
            stored={name: np.concatenate([part[name] for part in kept]) for name in kept[0]},
            conditions=fields,
            empty_conditions=empty,
            seconds={"sample": time.perf_counter() - begun},
            network_passes=np.full(count, (len(table) - first) * self._branches),
        )

    @property
    def _branches(self) -> float:
        """Passes of the network a step."""
        embeds = getattr(self._policy, "embeds_guidance", False)
        return 2.0 if guided(self._config.guidance_scale) and not embeds else 1.0

    def _started(self, start: Start, count: int, trajectory: bool) -> Start:
        """A start that fits, or an error that says why it does not."""
        latents, step = start
        shape, steps = (count, *self._policy.latent_shape), len(self._transitions)
        if trajectory:
            raise ValueError("start: chains that begin within are not learned from; sample with trajectory=False")
        if latents.shape != shape or latents.dtype != np.float32:
            raise ValueError(f"start: latents are {latents.dtype} {latents.shape}, expected float32 {shape}")
        if not 0 <= step < steps:
            raise ValueError(f"start: step is {step}, expected 0 to {steps - 1} of {steps} steps")
        return latents, step

    def _check_finite(
        self, latents: torch.Tensor, prompts: PromptBatch, of_prompts: Int64, numbers: Int64
    ) -> None:
        """A picture of latents that are not finite would be scored as if it were one."""
        bad = torch.nonzero(~latents.isfinite().flatten(1).all(1)).flatten().tolist()
        if bad:
            row, config = bad[0], self._config
            raise ValueError(
                f"image {numbers[row]} of the prompt {prompts.texts[of_prompts[row]]!r} (epoch {prompts.epoch}) has "
                f"latents that are not finite, and so have {len(bad) - 1} others: weights of version "
                f"{self._version} in {self._policy.precision}, sampler.kind={config.kind}, sampler.eta={config.eta:g}, "
                f"sampler.guidance_scale={config.guidance_scale:g}"
            )

    def _draw(
        self,
        chains: Chains,
        noise: ImageNoise,
        recording: Recording | None,
        first: int = 0,
        start: Float32 | None = None,
    ) -> torch.Tensor:
        """The final latents of a batch, float32 [B, C, h, w], from step `first` on."""
        table, policy, conditions = chains.transitions, self._policy, chains.conditions
        count, device = len(conditions), policy.device
        with_noise = mask(chains.noisy, len(table))
        noise_at_start = noise.draw()
        latents = torch.from_numpy(noise_at_start if start is None else start).to(device)
        can_draw = table.sigma > 0
        for _ in range(int(can_draw[:first].sum())):
            noise.draw()
        with conversions_kept(device):
            for step in range(first, len(table)):
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
                if recording is not None:
                    recording.step(step, latents, times, following, output)
                latents = following
        return latents


def _of_images(kept: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """What a recording kept, if it is an array for each name and has a row for each of so many images."""
    for name, values in kept.items():
        if not isinstance(values, np.ndarray) or values.shape[:1] != (count,):
            given = f"an array of shape {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
            raise ValueError(f"the recording kept '{name}' as {given}, expected a numpy array of {count} rows")
    return kept
