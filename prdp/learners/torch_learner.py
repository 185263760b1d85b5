"""The learner in torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from prdp.config import LearnerConfig
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.policy import Policy
from prdp.diffusion.process import denoising_log_likelihood, draw_cells
from prdp.diffusion.transitions import Transitions, kl_ref, log_ratio, standardise
from prdp.learners.base import Evidence, Learner, Progress, section
from prdp.learners.guards import gradient_error, unlearned
from prdp.objectives import Denoising
from prdp.types import Int64, Rollout, Weights


class TorchLearner(Learner):
    """See `Learner`.

    Args:
        policy: its learning weights are trained in place. Of trajectories the reference's outputs come stored; for
            denoising evidence the policy is asked to keep its reference, if the objective compares with it.
        transitions: the table that the rollouts were sampled with.
        guidance_scale: that the rollouts were sampled with; both branches are differentiated.
        config: optimizer, moving average, microbatch.
        objective: name and knobs.
        seed: of the noise that denoising evidence is computed with.
    """

    def __init__(
        self,
        policy: Policy,
        transitions: Transitions,
        guidance_scale: float,
        config: LearnerConfig,
        objective: Mapping[str, Any],
        seed: int = 0,
    ) -> None:
        super().__init__(transitions, config, objective, policy.precision)
        self._policy = policy
        self._seed = seed
        if "denoising_ref" in self._objective.method.arrays:
            policy.weights.keep_reference()
        self._guidance_scale = guidance_scale
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

    def weights(self) -> Weights:
        return self._policy.weights.export(self._updates)

    def evaluation_weights(self) -> Weights:
        if self._average is None:
            return self.weights()
        return Weights.of(self._updates, {name: value.cpu().numpy() for name, value in self._average.items()})

    def _tensors(self) -> dict[str, np.ndarray]:
        tensors = {f"weights/{name}": value.detach().cpu().numpy().copy() for name, value in self._parameters.items()}
        for name, value in self._parameters.items():
            for key, entry in self._optimizer.state.get(value, {}).items():
                tensors[f"optimizer/{key}/{name}"] = entry.detach().cpu().numpy().copy()
        for name, kept in (self._average or {}).items():
            tensors[f"ema/{name}"] = kept.cpu().numpy().copy()
        return tensors

    def _load_tensors(self, tensors: Mapping[str, np.ndarray], updates: int) -> None:
        self._policy.weights.bind(Weights.of(updates, section(tensors, "weights/")))
        self._updates = updates
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
            kept = section(tensors, "ema/")
            self._policy.weights.check(kept)
            self._average = {
                name: torch.from_numpy(np.array(kept[name])).to(value.device) for name, value in self._average.items()
            }

    def _encode(self, prompts: Sequence[str]) -> Conditions:
        return self._policy.encode(prompts)

    def _scaled(self, conditions: Conditions, factor: float) -> Conditions:
        return conditions.map(lambda value: value * factor if value.is_floating_point() else value)

    def _cell_evidence(
        self,
        rollout: Rollout,
        conditions: Conditions,
        images: Int64,
        columns: Int64,
        network: torch.nn.Module | None = None,
    ) -> torch.Tensor:
        """The objective's channels at cells (image, step or draw), [channels, b]; of `network` if it is given."""
        of_prompts = conditions[images // rollout.images_per_prompt]
        device = self._policy.device
        if isinstance(self._objective.evidence, Denoising):
            return self._denoising(rollout, of_prompts, images, columns, network)[None]

        def put(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values).to(device)

        places, steps = rollout.positions[images, columns], rollout.steps[images, columns]
        latents, following = put(rollout.latents[images, places]), put(rollout.latents[images, places + 1])
        times = put(self._transitions.times[steps]).to(latents.dtype)
        output = self._policy.output(latents, times, of_prompts, self._guidance_scale)
        reference = put(rollout.reference_output[images, columns])
        z, difference = standardise(self._transitions, put(steps), latents, following, output, reference)
        values = {"log_ratio": lambda: log_ratio(z, difference), "kl_ref": lambda: kl_ref(difference)}
        return torch.stack([values[name]() for name in self._objective.method.channels])

    def _denoising(
        self,
        rollout: Rollout,
        conditions: Conditions,
        images: Int64,
        draws: Int64,
        network: torch.nn.Module | None,
    ) -> torch.Tensor:
        """Minus the denoising error of final latents, guided as the sampler is, at this update's draws; [b]."""
        assert rollout.final_latents is not None
        assert isinstance(self._objective.evidence, Denoising)
        latents = torch.from_numpy(rollout.final_latents[images]).to(self._policy.device)
        numbers = images % rollout.images_per_prompt
        if self._objective.evidence.shared_draws:
            numbers = np.zeros_like(numbers)
        process = self._policy.process
        times, noise = draw_cells(
            process, self._seed, self._updates, rollout.group_ids[images], numbers, draws, tuple(latents.shape[1:])
        )
        noised, target = process.noised(latents, times, torch.from_numpy(noise).to(latents))
        output = self._policy.output(
            noised, torch.from_numpy(times).to(latents), conditions, self._guidance_scale, network
        )
        return denoising_log_likelihood(output, target)

    @torch.no_grad()
    def _evidence(
        self, rollout: Rollout, conditions: Conditions, cells: Int64, *, reference: bool = False
    ) -> Evidence:
        shape, names = self.cells(rollout), self._objective.method.channels
        evidence = {name: np.zeros(shape) for name in names}
        with self._policy.float32(), self._policy.reference() if reference else nullcontext() as network:
            for images, columns in self._microbatches(cells, shape[1]):
                values = self._cell_evidence(rollout, conditions, images, columns, network).cpu().numpy()
                for name, row in zip(names, values, strict=True):
                    evidence[name][images, columns] = row
        return evidence

    def _accumulate(
        self, rollout: Rollout, conditions: Conditions, cells: Int64, tables: Evidence, progress: Progress | None
    ) -> Evidence:
        self._optimizer.zero_grad(set_to_none=True)
        shape, names = self.cells(rollout), self._objective.method.channels
        evidence = {name: np.zeros(shape) for name in names}
        done = 0
        for images, columns in self._microbatches(cells, shape[1]):
            values = self._cell_evidence(rollout, conditions, images, columns)
            weights = np.stack([tables[name][images, columns] for name in names])
            (torch.from_numpy(weights).to(values.device, values.dtype) * values).sum().backward()
            for name, row in zip(names, values.detach().cpu().numpy(), strict=True):
                evidence[name][images, columns] = row
            done += len(images)
            if progress:
                progress(done)
        return evidence

    def _unscale(self, scale: float) -> bool:
        gradients = [value.grad for value in self._parameters.values() if value.grad is not None]
        torch._foreach_mul_(gradients, 1.0 / scale)
        return bool(torch.nn.utils.get_total_norm(gradients).isfinite())

    def _apply(self, learning_rate: float, ema_decay: float) -> dict[str, float]:
        largest = {
            name: None if value.grad is None else torch.linalg.vector_norm(value.grad, math.inf).item()
            for name, value in self._parameters.items()
        }
        without = unlearned(largest, first=self._updates == 0)
        gradients = {name: value.grad for name, value in self._parameters.items() if value.grad is not None}
        norm = torch.nn.utils.get_total_norm(gradients.values())
        if not torch.isfinite(norm):
            raise gradient_error(self._updates, {name: value for name, value in largest.items() if value is not None})
        torch.nn.utils.clip_grads_with_norm_(self._parameters.values(), self._config.max_grad_norm, norm)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        if self._average is not None:
            with torch.no_grad():
                for name, value in self._average.items():
                    value.lerp_(self._parameters[name].detach(), 1.0 - ema_decay)
        return {"grad_norm": norm.item(), "parameters_without_gradient": float(len(without))}
