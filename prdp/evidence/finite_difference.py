"""Evidence on how far an output has moved towards the better of two final images that started alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from prdp.config import SamplerConfig
from prdp.evidence.base import Channels, Evidence, Of, Pass
from prdp.types import Float64, Int64, Rollout

if TYPE_CHECKING:
    import torch

    from prdp.diffusion.conditions import Conditions
    from prdp.diffusion.process import Process
    from prdp.diffusion.recording import Chains
    from prdp.diffusion.transitions import Transitions

_FLOOR = 1e-6
"""Added to the mean square of the difference that a direction is divided by."""


@dataclass(frozen=True)
class FiniteDifference(Evidence):
    """Evidence on the steps of chains whose images differ little, a column per step; with its knobs.

    Images (1, 2), (3, 4), ... of a group are pairs. With d = v - v_old the change of the network's output at a latent
    that the sampler has visited, dx half the difference of the final latents of an image and its partner, and
    g = dx / (mean(dx^2) + 1e-6), means over latent dims:

        score = mean(g^2) - mean((d - s g)^2) = 2 s mean(d g) - mean(d^2),
        kl_ref = mean((v - v_ref)^2), of the frozen reference at the same latent.

    The second form of the score is computed: the first is a small difference of large numbers. It is 0 where nothing
    has changed, and largest at d = s g, which moves the clean latents that the output tells of towards the image, away
    from its partner. s is the sign of d x_0 / d output: -1 for a flow's velocity (x_0 = x - t v), for epsilon
    (x_0 = (x - b e) / a) and for v_prediction (x_0 = a x - b v), so that all of these have one formula; +1 for a
    network that predicts x_0. g has the same size at all steps, in the unit of whatever the network predicts.

    A rollout stores, of n images, S steps and latents of [C, h, w]:
        step_latents: float32 [n, S, C, h, w], before each stored step.
        step_outputs: [n, S, C, h, w], the guided output there of the policy that sampled.
        steps: int64 [n, S], rows of the sampler's transition table, ascending: all that are visited, with noise or
            without; of a window, its steps.
        final_latents: float32 [n, C, h, w], what the images were decoded from.

    Attributes:
        output_dtype: precision that `step_outputs` is stored in; the score is relative to the rounded output.

    References:
        Finite Difference Flow Optimization for RL Post-Training of Text-to-Image Models, 2026, arXiv:2603.12893.
    """

    output_dtype: Literal["float32", "float16"] = "float32"

    channels: ClassVar[tuple[str, ...]] = ("score", "kl_ref")
    sampled: ClassVar[tuple[str, ...]] = ("score",)
    others: ClassVar[Mapping[str, Of]] = {"kl_ref": "reference"}
    keeps_steps: ClassVar[bool] = True
    keeps: ClassVar[tuple[str, ...]] = ("step_latents", "step_outputs", "steps", "final_latents")
    skips_unused: ClassVar[bool] = True

    def problems(self, sampler: SamplerConfig, images_per_prompt: int, label: str) -> list[str]:
        found = []
        if not sampler.shared_start_noise:
            found.append(
                f"sampler.shared_start_noise=false: must be true for {label}: the images of a pair start alike, so "
                "that their difference tells of a direction"
            )
        if images_per_prompt > 1 and images_per_prompt % 2:
            found.append(f"images_per_prompt={images_per_prompt}: must be even for {label}, which takes pairs")
        return found

    def guard(self, arrays: Collection[str]) -> str | None:
        return "score" if "score" in arrays else None

    def recorder(self, arrays: Collection[str]) -> VisitedSteps:
        return VisitedSteps(self.output_dtype)

    def columns(self, sampler: SamplerConfig, noisy: Int64) -> int:
        from prdp.diffusion.windows import trained_steps

        return trained_steps(sampler, np.arange(sampler.steps) if sampler.window == "all" else noisy)

    def stored_latents(self, sampler: SamplerConfig, noisy: Int64, arrays: Collection[str]) -> dict[str, float]:
        columns = self.columns(sampler, noisy)
        return {
            f"latents before {columns:,} steps": columns,
            "outputs of the policy": columns * (0.5 if self.output_dtype == "float16" else 1.0),
            "final latents": 1.0,
        }

    def shape(self, rollout: Rollout) -> tuple[int, int]:
        images, columns = rollout.stored["steps"].shape
        return images, columns

    def check(self, rollout: Rollout) -> None:
        super().check(rollout)
        if rollout.images_per_prompt % 2:
            raise ValueError(
                f"images_per_prompt is {rollout.images_per_prompt}, expected an even number: images (1, 2), (3, 4), "
                "... of a prompt are pairs"
            )

    def stored(self, rollout: Rollout) -> Channels:
        unchanged: Float64 = np.zeros(self.shape(rollout))
        return {"score": unchanged}

    def values(
        self,
        of: Pass,
        rollout: Rollout,
        conditions: Conditions,
        images: Int64,
        columns: Int64,
        names: Collection[str],
    ) -> dict[str, torch.Tensor]:
        import torch

        from prdp.diffusion.process import squared_distance

        stored = rollout.stored

        def put(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values).to(of.policy.device)

        latents, old = put(stored["step_latents"][images, columns]), put(stored["step_outputs"][images, columns])
        times = of.transitions.times[stored["steps"][images, columns]]
        # Groups are even, so that the number of an image is even where it is the first of its pair.
        direction = towards(*(put(stored["final_latents"][rows]) for rows in (images, images ^ 1)))
        sign = _sign_of_clean(of.policy.process, times, latents)
        at = put(times).to(latents.dtype)
        reference = of.output_of("reference", latents, at, conditions) if "kl_ref" in names else None
        output = of.output(latents, at, conditions)
        change = output - old.to(output.dtype)
        found = {"score": (2.0 * sign * change * direction - change.square()).flatten(1).mean(1)}
        return found if reference is None else found | {"kl_ref": squared_distance(output, reference)}

    def describe(self, now: Channels, known: Mapping[str, np.ndarray], cells: Int64) -> dict[str, float]:
        names = {"score": "pair_score", "kl_ref": "kl_ref"}
        return {names[name]: float(values.ravel()[cells].mean()) for name, values in now.items()}

    def place(self, rollout: Rollout, transitions: Transitions, image: int, column: int) -> str:
        step = rollout.stored["steps"][image, column]
        return f"image {image}, step {step} (time {transitions.times[step]:g})"


@dataclass(frozen=True)
class VisitedSteps:
    """Keeps latents and outputs of all steps, or of those of a window, and the final latents.

    Attributes:
        output_dtype: of `step_outputs`.
    """

    output_dtype: str = "float32"
    needs_reference: ClassVar[bool] = False
    needs_float32: ClassVar[bool] = True

    def start(self, chains: Chains) -> _Visits:
        """Choose the steps of every image; see `prdp.diffusion.windows`."""
        return _Visits(self.output_dtype, chains)


class _Visits:
    def __init__(self, output_dtype: str, chains: Chains) -> None:
        from prdp.diffusion.windows import trained

        config, steps = chains.config, chains.noisy
        if config.window == "all":
            steps = np.tile(np.arange(len(chains.transitions)), (len(chains.prompts), 1))
        self._steps = trained(config, steps, chains.seed, chains.epoch, chains.prompts)
        shape = (*self._steps.shape, *chains.policy.latent_shape)
        self._latents, self._outputs = np.empty(shape, np.float32), np.empty(shape, output_dtype)

    def step(
        self, step: int, latents: torch.Tensor, times: torch.Tensor, following: torch.Tensor, output: torch.Tensor
    ) -> None:
        rows, columns = np.nonzero(self._steps == step)
        if len(rows):
            self._latents[rows, columns] = latents.cpu().numpy()[rows]
            self._outputs[rows, columns] = output.cpu().numpy()[rows]

    def finish(self, latents: torch.Tensor) -> dict[str, np.ndarray]:
        return {
            "step_latents": self._latents,
            "step_outputs": self._outputs,
            "steps": self._steps,
            "final_latents": latents.cpu().numpy(),
        }


def towards(final: torch.Tensor, partner: torch.Tensor) -> torch.Tensor:
    """g of `FiniteDifference`: from the middle of two final latents [b, C, h, w] to the first, over its mean square."""
    half = 0.5 * (final - partner)
    return half / (half.square().flatten(1).mean(1) + _FLOOR).view(-1, *[1] * (half.dim() - 1))


def _sign_of_clean(process: Process, times: Float64, like: torch.Tensor) -> torch.Tensor:
    """Sign of d x_0 / d output at times [b]; x_0 is linear in the output."""
    return process.clean(like.new_zeros(like.shape), times, like.new_ones(like.shape)).sign()
