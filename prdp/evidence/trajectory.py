"""Evidence on the transitions of the sampler's chains: log-ratios and KLs of every stored step."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from prdp.config import SamplerConfig
from prdp.evidence.base import Channels, Evidence, Pass
from prdp.support.remote_rows import RowArray
from prdp.types import Float64, Int64, Rollout

if TYPE_CHECKING:
    import torch

    from prdp.diffusion.conditions import Conditions
    from prdp.diffusion.recording import Chains
    from prdp.diffusion.transitions import Transitions

_OF_REFERENCE = frozenset({"log_ratio", "log_ratio_old", "kl_ref"})
"""What needs the output of the reference."""
_OF_SAMPLED = frozenset({"guarded_importance", "kl_old"})
"""What needs the output of the policy that sampled."""


@dataclass(frozen=True)
class Trajectory(Evidence):
    """Evidence on the stored transitions of a rollout, a column per stored step; with its knobs.

    A rollout stores, of n images, S steps and latents of [C, h, w]:
        latents: float32 [n, L, C, h, w], around the stored steps, see `stored_positions`. Steps without noise, which
            have no log-prob, are not stored.
        steps: int64 [n, S], rows of the sampler's transition table, ascending.
        base_output: [n, S, C, h, w], the guided output before each stored step of the policy that log-ratios are
            relative to: the reference, where the loss asks for it, and otherwise the policy that sampled.
        policy_output: likewise, of the policy that sampled; where the loss asks for the reference and for
            `guarded_importance` or `kl_old`.
        log_ratio: float32 [n, S], log pi_old / pi_ref as the mean over latent dims; where the reference is asked for.

    Attributes:
        step_weighting: 'uniform', or 'inverse_sensitivity': the evidence of each step is divided by (C / sigma)^2, mean
            weight 1, before the objective sees it, so that clips too act on the weighted evidence; or
            'inverse_root_sensitivity': by C / sigma, which makes the gradient with respect to the network's output
            equally large at every step.
        output_dtype: precision that outputs are stored in. Log-ratios are relative to the rounded output, in the
            sampler and the learner alike.
    """

    step_weighting: Literal["uniform", "inverse_sensitivity", "inverse_root_sensitivity"] = "uniform"
    output_dtype: Literal["float32", "float16"] = "float32"

    channels: ClassVar[tuple[str, ...]] = ("log_ratio", "kl_ref", "log_importance", "guarded_importance", "kl_old")
    sampled: ClassVar[tuple[str, ...]] = ("log_ratio", "log_importance", "guarded_importance", "kl_old")
    data: ClassVar[tuple[str, ...]] = ("log_ratio_old", "step_size", "noise_weight")
    of_steps: ClassVar[tuple[str, ...]] = ("step_size", "noise_weight")
    keeps_steps: ClassVar[bool] = True
    skips_unused: ClassVar[bool] = True
    needs_noise: ClassVar[bool] = True

    def guard(self, arrays: Collection[str]) -> str | None:
        return next((name for name in self.sampled if name in arrays), None)

    def recorder(self, arrays: Collection[str]) -> TrajectoryRecorder:
        relative = not _OF_REFERENCE.isdisjoint(arrays)
        return TrajectoryRecorder(relative, self.output_dtype, relative and not _OF_SAMPLED.isdisjoint(arrays))

    def columns(self, sampler: SamplerConfig, noisy: Int64) -> int:
        from prdp.diffusion.windows import trained_steps

        return trained_steps(sampler, noisy)

    def reference_passes(self, sampler: SamplerConfig, noisy: Int64, arrays: Collection[str]) -> int:
        return 0 if _OF_REFERENCE.isdisjoint(arrays) else self.columns(sampler, noisy)

    def stored_latents(self, sampler: SamplerConfig, noisy: Int64, arrays: Collection[str]) -> dict[str, float]:
        from prdp.diffusion.windows import stored_latents

        columns = self.columns(sampler, noisy)
        whose = ["the policy"] if _OF_REFERENCE.isdisjoint(arrays) else ["the reference"]
        if self.recorder(arrays).keeps_policy:
            whose.append("the policy")
        size = columns * (0.5 if self.output_dtype == "float16" else 1.0)
        latents = {f"latents around {columns:,} noisy steps": float(stored_latents(sampler, noisy))}
        return latents | {f"outputs of {one}": size for one in whose}

    def shape(self, rollout: Rollout) -> tuple[int, int]:
        images, columns = rollout.numbers("steps").shape
        return images, columns

    def check(self, rollout: Rollout) -> None:
        if "steps" not in rollout.stored or not rollout.numbers("steps").size:
            raise ValueError("the rollout has no trajectories: sample it with trajectory=True")

    def known(self, rollout: Rollout, transitions: Transitions) -> Channels:
        steps, ratio = rollout.numbers("steps"), _ratios(rollout)
        found = {"step_size": transitions.step_size[steps], "noise_weight": transitions.noise_weight[steps]}
        return found if ratio is None else found | {"log_ratio_old": ratio}

    def stored(self, rollout: Rollout) -> Channels:
        ratio = _ratios(rollout)
        found = {name: np.zeros(self.shape(rollout)) for name in self.sampled if name != "log_ratio"}
        return found if ratio is None else found | {"log_ratio": ratio}

    def weights(self, rollout: Rollout, transitions: Transitions) -> Float64 | None:
        if self.step_weighting == "uniform":
            return None
        inverse = np.zeros(len(transitions))
        power = 0.5 if self.step_weighting == "inverse_root_sensitivity" else 1.0
        inverse[transitions.noisy] = 1.0 / transitions.sensitivity[transitions.noisy] ** power
        weights: Float64 = (inverse / inverse[transitions.noisy].mean())[rollout.numbers("steps")]
        return weights

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

        from prdp.diffusion.transitions import guarded_importance, kl, log_ratio, standardise

        stored, device = rollout.stored, of.policy.device

        def put(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values).to(device)

        of_images = stored["steps"][images]
        rows = np.arange(len(images))
        places, steps = stored_positions(of_images)[rows, columns], of_images[rows, columns]
        latents, following = put(stored["latents"][images, places]), put(stored["latents"][images, places + 1])
        times = put(of.transitions.times[steps]).to(latents.dtype)
        output = of.output(latents, times, conditions)

        def relative_to(outputs: RowArray) -> tuple[torch.Tensor, torch.Tensor]:
            base = put(outputs[images, columns]).to(latents.dtype)
            return standardise(of.transitions, put(steps), latents, following, output, base)

        z, difference = relative_to(stored["base_output"])
        found: dict[str, torch.Tensor] = {}
        if "kl_ref" in names:
            found["kl_ref"] = kl(difference)
        if "log_ratio" in names or "log_importance" in names:
            ratio = log_ratio(z, difference)
            found["log_ratio"] = ratio
            old = stored.get("log_ratio")
            found["log_importance"] = ratio if old is None else ratio - put(old[images, columns]).to(ratio.dtype)
        if not _OF_SAMPLED.isdisjoint(names):
            if "log_ratio" in stored:
                z, difference = relative_to(stored["policy_output"])
            found["kl_old"] = kl(difference)
            sigma = put(of.transitions.sigma[steps]).to(latents.dtype)
            found["guarded_importance"] = guarded_importance(z, difference, sigma)
        return {name: found[name] for name in names}

    def describe(self, now: Channels, known: Mapping[str, np.ndarray], cells: Int64) -> dict[str, float]:
        def mean(values: np.ndarray) -> float:
            return float(values.ravel()[cells].mean())

        metrics, importance = {}, now.get("log_importance")
        if "log_ratio" in now:
            metrics["logratio_ref"] = mean(now["log_ratio"])
            importance = now["log_ratio"] - known["log_ratio_old"]
        if importance is not None:
            metrics["logratio"] = mean(importance)
            metrics["approx_kl"] = mean(np.expm1(importance) - importance)
        return metrics | {name: mean(now[name]) for name in ("kl_ref", "kl_old") if name in now}

    def place(self, rollout: Rollout, transitions: Transitions, image: int, column: int) -> str:
        step = rollout.stored["steps"][image, column]
        return f"image {image}, step {step} (time {transitions.times[step]:g})"


@dataclass(frozen=True)
class TrajectoryRecorder:
    """Keeps the chosen transitions with noise; see `Trajectory`.

    Attributes:
        needs_reference: whether log-ratios to the reference are kept, which costs its pass at every stored step.
        output_dtype: of stored outputs.
        keeps_policy: whether the outputs of the policy are kept beside those of the reference.
    """

    needs_reference: bool = True
    output_dtype: str = "float32"
    keeps_policy: bool = False
    needs_float32: ClassVar[bool] = True

    def start(self, chains: Chains) -> _Transitions:
        """Choose the steps of every image; see `prdp.diffusion.windows`."""
        return _Transitions(self, chains)


class _Transitions:
    def __init__(self, recorder: TrajectoryRecorder, chains: Chains) -> None:
        from prdp.diffusion.windows import stored_latents, trained

        self._recorder, self._chains = recorder, chains
        config, noisy = chains.config, chains.transitions.noisy
        self._steps = trained(config, chains.noisy, chains.seed, chains.epoch, chains.prompts)
        self._before = stored_positions(self._steps)
        count, columns = self._steps.shape
        shape = chains.policy.latent_shape
        self._latents = np.zeros((count, stored_latents(config, noisy), *shape), np.float32)
        self._outputs = np.empty((count, columns, *shape), recorder.output_dtype)
        self._policy_outputs = np.empty_like(self._outputs) if recorder.keeps_policy else None
        self._ratios = np.empty((count, columns), np.float32)

    def step(
        self, step: int, latents: torch.Tensor, times: torch.Tensor, following: torch.Tensor, output: torch.Tensor
    ) -> None:
        import torch

        from prdp.diffusion.transitions import log_ratio, standardise

        rows, columns = np.nonzero(self._steps == step)
        if not len(rows):
            return
        chains, conditions = self._chains, self._chains.conditions
        if len(rows) < len(latents):
            index = torch.from_numpy(rows).to(latents.device)
            latents, times, following, output = (value[index] for value in (latents, times, following, output))
            conditions = conditions[rows]
        base = output
        if self._recorder.needs_reference:
            base = chains.reference_output(latents, times, conditions, output)
        dtype = getattr(torch, self._recorder.output_dtype)
        kept = base.to(dtype)
        places = self._before[rows, columns]
        self._latents[rows, places] = latents.cpu().numpy()
        self._latents[rows, places + 1] = following.cpu().numpy()
        self._outputs[rows, columns] = kept.cpu().numpy()
        if self._policy_outputs is not None:
            self._policy_outputs[rows, columns] = output.to(dtype).cpu().numpy()
        if self._recorder.needs_reference:
            of_rows = torch.full((len(rows),), step, device=latents.device)
            z, difference = standardise(chains.transitions, of_rows, latents, following, output, kept.to(output.dtype))
            self._ratios[rows, columns] = log_ratio(z, difference).cpu().numpy()

    def finish(self, latents: torch.Tensor) -> dict[str, np.ndarray]:
        kept = {"latents": self._latents, "base_output": self._outputs, "steps": self._steps}
        if self._policy_outputs is not None:
            kept["policy_output"] = self._policy_outputs
        return kept | ({"log_ratio": self._ratios} if self._recorder.needs_reference else {})


def _ratios(rollout: Rollout) -> Float64 | None:
    """The log-ratios of the policy that sampled, if they are kept."""
    return rollout.numbers("log_ratio").astype(np.float64) if "log_ratio" in rollout.stored else None


def stored_positions(steps: Int64) -> Int64:
    """Where the latents before each stored step stand in a trajectory, int64 [n, S].

    Those after a step follow them; neighbouring steps share those between.

    Args:
        steps: int64 [n, S], ascending.
    """
    gaps = np.diff(steps, axis=1, prepend=steps[:, :1]) > 1
    return np.arange(steps.shape[1]) + np.cumsum(gaps, axis=1)
