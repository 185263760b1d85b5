"""The central learner: evidence, coefficients, accumulation, step; with peak memory of one microbatch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from prdp.config import LearnerConfig, ObjectiveConfig
from prdp.diffusion.policy import Policy
from prdp.diffusion.sampler import standardise
from prdp.diffusion.transitions import Transitions, log_ratio
from prdp.learners.guards import RatioError, check_rewards, unlearned
from prdp.objectives import coefficients
from prdp.types import Float64, Int64, Rollout, Weights

log = logging.getLogger(__name__)
Progress = Callable[[int], None]


class TorchLearner:
    """Minimises an objective on the log-ratios of stored trajectories.

    Args:
        policy: its learning weights are trained in place; the reference is not needed, its outputs come stored.
        transitions: the table that the rollouts were sampled with.
        guidance_scale: that the rollouts were sampled with; both branches are differentiated.
        config: optimizer, moving average, microbatch.
        objective: name and knobs.
    """

    def __init__(
        self,
        policy: Policy,
        transitions: Transitions,
        guidance_scale: float,
        config: LearnerConfig,
        objective: ObjectiveConfig,
    ) -> None:
        self._policy = policy
        self._transitions = transitions
        self._guidance_scale = guidance_scale
        self._config = config
        self._objective = objective
        self._parameters = policy.weights.parameters
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
        )
        self._average = (
            {name: value.detach().clone() for name, value in self._parameters.items()} if config.ema_decay else None
        )
        self._updates = 0
        self._step_weights = _step_weights(objective.step_weighting, transitions)

    @property
    def version(self) -> int:
        """Number of optimizer steps taken."""
        return self._updates

    def weights(self) -> Weights:
        """The weights to sample with."""
        return self._policy.weights.export(self._updates)

    def evaluation_weights(self) -> Weights:
        """The weights to evaluate and export: the moving average where one is kept."""
        if self._average is None:
            return self.weights()
        return Weights.of(self._updates, {name: value.cpu().numpy() for name, value in self._average.items()})

    def update(self, rollout: Rollout, progress: Progress | None = None) -> dict[str, float]:
        """One optimizer step on the full batch.

        The first update after an on-policy rollout takes its evidence from the sampler and needs one pass over the
        cells, later ones need two.

        Args:
            rollout: scored, with trajectories.
            progress: called with the number of cells done after each microbatch.

        Raises:
            RatioError: on an on-policy rollout the recomputed log-ratio is not the stored one; nothing is stepped.
            ValueError: the rollout is not scored, has no group with a pair, or the loss or gradient is not finite.
        """
        start = time.perf_counter()
        metrics = check_rewards(rollout)
        assert rollout.rewards is not None
        old = rollout.log_ratio.astype(np.float64)
        on_policy = rollout.weights_version == self._updates
        states = self._policy.encode_prompts(rollout.prompts.texts)
        now = old if on_policy else self._evidence(rollout, states)
        result = coefficients(
            self._objective.name,
            now,
            old,
            rollout.rewards,
            rollout.group_ids,
            step_weights=self._step_weights,
            beta=self._objective.beta,
            clip_range=self._objective.clip_range,
        )
        if not np.isfinite(result.loss):
            raise ValueError(f"the loss of update {self._updates} is {result.loss}")
        recomputed = self._accumulate(rollout, states, result.table, progress)
        if on_policy:
            self._check_ratio(old, recomputed)
        metrics |= self._step() | result.metrics | self._policy_metrics(now, old)
        metrics["loss"] = result.loss
        metrics["ratio_error"] = float(np.abs(recomputed - now).max())
        metrics["time/learn"] = time.perf_counter() - start
        return metrics

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Everything that the next update depends on: arrays, and JSON-able scalars."""
        tensors = {f"weights/{name}": value.detach().cpu().numpy().copy() for name, value in self._parameters.items()}
        for name, value in self._parameters.items():
            for key, entry in self._optimizer.state.get(value, {}).items():
                tensors[f"optimizer/{key}/{name}"] = entry.detach().cpu().numpy().copy()
        for name, kept in (self._average or {}).items():
            tensors[f"ema/{name}"] = kept.cpu().numpy().copy()
        return tensors, {"updates": self._updates}

    def load_state(self, tensors: Mapping[str, np.ndarray], scalars: Mapping[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            ValueError: tensors missing or of another shape; names them.
        """

        def section(prefix: str) -> dict[str, np.ndarray]:
            return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}

        weights = section("weights/")
        self._policy.weights.bind(Weights.of(int(scalars["updates"]), weights))
        self._updates = int(scalars["updates"])
        if self._updates:
            for name, parameter in self._parameters.items():
                entries = {key: tensors.get(f"optimizer/{key}/{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
                absent = [f"optimizer/{key}/{name}" for key, entry in entries.items() if entry is None]
                if absent:
                    raise ValueError(f"the checkpoint has no tensor '{absent[0]}'")
                self._optimizer.state[parameter] = {
                    key: torch.from_numpy(np.array(entry)).to(parameter.device if key != "step" else "cpu")
                    for key, entry in entries.items()
                }
        if self._average is not None:
            kept = section("ema/")
            self._policy.weights.check(kept)
            self._average = {
                name: torch.from_numpy(np.array(kept[name])).to(value.device) for name, value in self._average.items()
            }

    def _cells(self, rollout: Rollout) -> Iterator[tuple[Int64, Int64]]:
        """Rows (image, step) of every microbatch; cells of different steps share a batch."""
        count, steps = rollout.log_ratio.shape
        cells = np.arange(count * steps)
        for begin in range(0, len(cells), self._config.microbatch):
            yield np.divmod(cells[begin : begin + self._config.microbatch], steps)

    def _cell_evidence(
        self, rollout: Rollout, states: torch.Tensor, images: Int64, steps: Int64
    ) -> torch.Tensor:
        """log pi_theta / pi_ref of the cells, float32 [b]."""
        device = states.device

        def put(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values).to(device)

        latents, following = put(rollout.latents[images, steps]), put(rollout.latents[images, steps + 1])
        prompts = put(images // rollout.images_per_prompt)
        output = self._policy.output(
            latents, put(self._transitions.timesteps[steps]), states[prompts], self._guidance_scale
        )
        z, difference = standardise(
            self._transitions, put(steps), latents, following, output, put(rollout.reference_output[images, steps])
        )
        return log_ratio(z, difference)

    @torch.no_grad()
    def _evidence(self, rollout: Rollout, states: torch.Tensor) -> Float64:
        evidence = np.empty(rollout.log_ratio.shape)
        for images, steps in self._cells(rollout):
            evidence[images, steps] = self._cell_evidence(rollout, states, images, steps).cpu().numpy()
        return evidence

    def _accumulate(
        self, rollout: Rollout, states: torch.Tensor, table: Float64, progress: Progress | None
    ) -> Float64:
        """Backward on sum(coefficient * evidence), microbatch by microbatch; returns the evidence seen on the way."""
        self._optimizer.zero_grad(set_to_none=True)
        evidence = np.empty(rollout.log_ratio.shape)
        done = 0
        for images, steps in self._cells(rollout):
            cells = self._cell_evidence(rollout, states, images, steps)
            weights = torch.from_numpy(table[images, steps]).to(cells.device, cells.dtype)
            (weights * cells).sum().backward()
            evidence[images, steps] = cells.detach().cpu().numpy()
            done += len(images)
            if progress:
                progress(done)
        return evidence

    def _check_ratio(self, stored: Float64, recomputed: Float64) -> None:
        error = np.abs(stored - recomputed)
        worst = float(error.max())
        if not worst <= self._config.ratio_tolerance:
            image, step = np.unravel_index(int(error.argmax()), error.shape)
            raise RatioError(
                f"at update {self._updates} the log-ratio of an on-policy rollout differs by {worst:.3g} from the "
                f"stored one (learner.ratio_tolerance={self._config.ratio_tolerance:g}), worst at image {image}, "
                f"step {step} (timestep {self._transitions.timesteps[step]}): stored {stored[image, step]:.6g}, "
                f"recomputed {recomputed[image, step]:.6g}. Sampler and learner do not compute the same "
                "policy: weights, precision or guidance differ"
            )

    def _step(self) -> dict[str, float]:
        without = unlearned(self._parameters, first=self._updates == 0)
        if without:
            log.warning("%d of %d tensors got no gradient, first: %s", len(without), len(self._parameters), without[0])
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._config.max_grad_norm)
        if not torch.isfinite(norm):
            bad = next(n for n, p in self._parameters.items() if p.grad is not None and not p.grad.isfinite().all())
            raise ValueError(f"the gradient of update {self._updates} is not finite, first in tensor '{bad}'")
        warmup = self._config.warmup_updates
        rate = self._config.learning_rate * min(1.0, (self._updates + 1) / warmup if warmup else 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._updates += 1
        if self._average is not None:
            # A short memory at first, so that the untrained start fades from the average.
            decay = min(self._config.ema_decay, (1 + self._updates) / (10 + self._updates))
            with torch.no_grad():
                for name, value in self._average.items():
                    value.lerp_(self._parameters[name].detach(), 1.0 - decay)
        return {
            "grad_norm": norm.item(),
            "learning_rate": rate,
            "parameters_without_gradient": float(len(without)),
        }

    def _policy_metrics(self, now: Float64, old: Float64) -> dict[str, float]:
        difference = now - old
        scaled = difference if self._step_weights is None else difference * self._step_weights
        clip_range = self._objective.clip_range
        return {
            "logratio": float(difference.mean()),
            "logratio_ref": float(now.mean()),
            "approx_kl": float((np.expm1(difference) - difference).mean()),
            "clipfrac": float((np.abs(scaled) > clip_range).mean()) if clip_range is not None else 0.0,
        }


def _step_weights(weighting: str, transitions: Transitions) -> Float64 | None:
    if weighting == "uniform":
        return None
    if weighting == "inverse_sensitivity":
        inverse = 1.0 / transitions.sensitivity
        return inverse / inverse.mean()
    raise ValueError(f"objective.step_weighting is {weighting!r}, expected uniform or inverse_sensitivity")
