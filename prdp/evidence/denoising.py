"""Evidence on final latents that are noised anew: no trajectories and no noise in the sampler."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from prdp.config import SamplerConfig
from prdp.evidence.base import Channels, Evidence, Of, Pass
from prdp.support.rules import Count, Share
from prdp.types import Float64, Int64, Rollout, Times

if TYPE_CHECKING:
    import torch

    from prdp.diffusion.conditions import Conditions
    from prdp.diffusion.process import Process
    from prdp.diffusion.recording import Chains


@dataclass(frozen=True)
class Denoising(Evidence):
    """Evidence on final latents noised anew, a column per draw of (time, noise); with its knobs.

    A rollout stores final_latents: float32 [n, C, h, w], what the images were decoded from.

    With l the mean over latent dims of (output - target)^2, at the same draws for every network of an update:
        denoising = -l.
        log_ratio = l_ref - l, log_importance = l_sampled - l, log_ratio_old = l_ref - l_sampled, log_ratio_old_policy =
            l_old - l: differences of Gaussian log-densities of the target, of variance 1/2 around the outputs;
            docs/objectives/prdp.md says what they tell of the policies' log-ratio.
        kl_ref, kl_old_policy = the means of (output - output_ref)^2 and (output - output_old)^2: their KLs.

    Attributes:
        draws: per image and update.
        shared_draws: all images of a prompt are noised alike.
        times: uniform: as in pretraining; stratified: as uniform, one draw in each of `draws` equal parts; sampler:
            steps of the sampler, in random order without repetition while there are enough; sampler_stratified: one of
            these in each of `draws` equal parts.
        noisiest: share of the times, from pure noise down, that is drawn from.
        adaptive_weight: l is divided by max(mean |output - target|, 1e-5), without gradient (arXiv:2509.16117).
    """

    draws: Count = 8
    shared_draws: bool = False
    times: Times = "uniform"
    noisiest: Share = 1.0
    adaptive_weight: bool = False

    channels: ClassVar[tuple[str, ...]] = ("denoising", "kl_ref", "kl_old_policy")
    data: ClassVar[tuple[str, ...]] = ("denoising_ref", "denoising_old", "denoising_sampled")
    passes: ClassVar[Mapping[str, tuple[str, Of]]] = {
        "denoising_ref": ("denoising", "reference"),
        "denoising_old": ("denoising", "old"),
        "denoising_sampled": ("denoising", "sampled"),
    }
    derived: ClassVar[Mapping[str, tuple[str, str]]] = {
        "log_ratio": ("denoising", "denoising_ref"),
        "log_ratio_old": ("denoising_sampled", "denoising_ref"),
        "log_importance": ("denoising", "denoising_sampled"),
        "log_ratio_old_policy": ("denoising", "denoising_old"),
    }
    others: ClassVar[Mapping[str, Of]] = {"kl_ref": "reference", "kl_old_policy": "old"}
    beside: ClassVar[Mapping[str, Of]] = {"denoising_ref": "reference", "denoising_old": "old"}
    keeps: ClassVar[tuple[str, ...]] = ("final_latents",)
    skips_unused: ClassVar[bool] = True

    def problems(self, sampler: SamplerConfig, images_per_prompt: int, label: str) -> list[str]:
        if sampler.trained_share == 1:
            return []
        return [
            f"sampler.trained_share={sampler.trained_share:g}: has no effect on {label}, whose evidence is of final "
            "images; leave it at 1"
        ]

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
        """See the class; guided as the sampler is, at this update's draws."""
        import torch

        noised = self.noised(of, rollout, images, columns)
        times = torch.from_numpy(noised.times).to(noised.latents)
        asked = dict.fromkeys(whose for name, whose in {**self.others, **self.beside}.items() if name in names)
        alike = {
            whose for whose in asked if whose in of.alike and self.guidance_of(whose) in (None, of.guidance_scale)
        }
        others = {
            whose: of.output_of(whose, noised.latents, times, conditions, self.guidance_of(whose))
            for whose in asked
            if whose not in alike
        }
        output = of.output(noised.latents, times, conditions)
        others |= dict.fromkeys(alike, output.detach())
        return {name: self.channel(name, output, others, noised) for name in names}

    def channel(
        self, name: str, output: torch.Tensor, others: Mapping[Of, torch.Tensor], noised: Noised
    ) -> torch.Tensor:
        """One channel at cells, [b].

        Args:
            output: of the network, [b, C, h, w].
            others: of the networks that `others` and `beside` name.
            noised: what they are outputs for.
        """
        from prdp.diffusion.process import denoising_error, squared_distance

        if name == "denoising":
            return -denoising_error(output, noised.target, self.adaptive_weight)
        if name in self.beside:
            return -denoising_error(others[self.beside[name]], noised.target, self.adaptive_weight)
        return squared_distance(output, others[self.others[name]])

    def noised(self, of: Pass, rollout: Rollout, images: Int64, columns: Int64) -> Noised:
        """Final latents of cells, noised at this update's draws."""
        import torch

        from prdp.diffusion.process import Draws

        process = of.policy.process
        latents = torch.from_numpy(rollout.stored["final_latents"][images]).to(of.policy.device)
        numbers = images % rollout.images_per_prompt
        draws = Draws(process, of.seed, of.update, self.draws, self.times, self.noisiest, of.transitions.times)
        times, noise = draws.cells(
            rollout.group_ids[images],
            np.zeros_like(numbers) if self.shared_draws else numbers,
            columns,
            tuple(latents.shape[1:]),
        )
        noised, target = process.noised(latents, times, torch.from_numpy(noise).to(latents))
        return Noised(process, latents, times, noised, target)

    def describe(self, now: Channels, known: Mapping[str, np.ndarray], cells: Int64) -> dict[str, float]:
        def mean(values: np.ndarray) -> float:
            return float(values.ravel()[cells].mean())

        metrics = {name: mean(now[name]) for name in self.others if name in now}
        if "denoising" in now:
            metrics["denoising_error"] = -mean(now["denoising"])
            for metric, other in (
                ("logratio_ref", "denoising_ref"),
                ("logratio", "denoising_sampled"),
                ("logratio_old_policy", "denoising_old"),
            ):
                if other in known:
                    metrics[metric] = mean(now["denoising"] - known[other])
        return metrics


@dataclass(frozen=True)
class Noised:
    """Latents of cells with noise.

    Attributes:
        process: that noises.
        clean: without noise, [b, C, h, w].
        times: of the process, float64 [b].
        latents: noised, [b, C, h, w].
        target: the output that is right for them, [b, C, h, w].
    """

    process: Process
    clean: torch.Tensor
    times: Float64
    latents: torch.Tensor
    target: torch.Tensor

    def clean_of(self, output: torch.Tensor) -> torch.Tensor:
        """The clean latents that an output tells of."""
        return self.process.clean(self.latents, self.times, output)


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
