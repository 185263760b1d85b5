"""Evidence on final latents that are noised anew: no trajectories, no reference and no noise in the sampler."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from prdp.config import SamplerConfig
from prdp.evidence.base import Channels, Evidence, Of, Pass
from prdp.support.rules import Count
from prdp.types import Int64, Rollout

if TYPE_CHECKING:
    import torch

    from prdp.diffusion.conditions import Conditions
    from prdp.diffusion.recording import Chains


@dataclass(frozen=True)
class Denoising(Evidence):
    """Evidence on final latents noised anew, a column per draw of (time, noise); with its knobs.

    A rollout stores final_latents: float32 [n, C, h, w], what the images were decoded from.

    Attributes:
        draws: per image and update.
        shared_draws: all images of a prompt are noised alike.
    """

    draws: Count = 8
    shared_draws: bool = False

    channels: ClassVar[tuple[str, ...]] = ("denoising",)
    data: ClassVar[tuple[str, ...]] = ("denoising_ref", "denoising_old")
    passes: ClassVar[Mapping[str, tuple[str, Of]]] = {
        "denoising_ref": ("denoising", "reference"),
        "denoising_old": ("denoising", "old"),
    }
    keeps: ClassVar[tuple[str, ...]] = ("final_latents",)
    skips_unused: ClassVar[bool] = True

    def recorder(self, arrays: Collection[str]) -> FinalLatents:
        return FinalLatents()

    def columns(self, sampler: SamplerConfig, noisy: Int64) -> int:
        return self.draws

    def stored_latents(self, sampler: SamplerConfig, noisy: Int64, arrays: Collection[str]) -> dict[str, float]:
        return {"final latents": 1.0}

    def shape(self, rollout: Rollout) -> tuple[int, int]:
        return len(rollout), self.draws

    def values(
        self,
        of: Pass,
        rollout: Rollout,
        conditions: Conditions,
        images: Int64,
        columns: Int64,
        names: Collection[str],
    ) -> dict[str, torch.Tensor]:
        """Minus the denoising error of final latents, guided as the sampler is, at this update's draws."""
        import torch

        from prdp.diffusion.process import denoising_log_likelihood, draw_cells

        latents = torch.from_numpy(rollout.stored["final_latents"][images]).to(of.policy.device)
        numbers = images % rollout.images_per_prompt
        if self.shared_draws:
            numbers = np.zeros_like(numbers)
        process = of.policy.process
        times, noise = draw_cells(
            process, of.seed, of.update, rollout.group_ids[images], numbers, columns, tuple(latents.shape[1:])
        )
        noised, target = process.noised(latents, times, torch.from_numpy(noise).to(latents))
        output = of.output(noised, torch.from_numpy(times).to(latents), conditions)
        return {"denoising": denoising_log_likelihood(output, target)}

    def describe(self, now: Channels, known: Mapping[str, np.ndarray], cells: Int64) -> dict[str, float]:
        return {"denoising_error": -float(now["denoising"].ravel()[cells].mean())}


@dataclass(frozen=True)
class FinalLatents:
    """Keeps what the images were decoded from, and nothing of the way there."""

    needs_reference: ClassVar[bool] = False
    needs_float32: ClassVar[bool] = False

    def start(self, chains: Chains) -> FinalLatents:
        """There is nothing to prepare."""
        return self

    def step(
        self, step: int, latents: torch.Tensor, times: torch.Tensor, following: torch.Tensor, output: torch.Tensor
    ) -> None:
        """Keep nothing."""

    def finish(self, latents: torch.Tensor) -> dict[str, np.ndarray]:
        """Keep the final latents."""
        return {"final_latents": latents.cpu().numpy()}
