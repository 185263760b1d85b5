"""The learner in torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from prdp.config import LearnerConfig, ObjectiveConfig
from prdp.diffusion.policy import Policy
from prdp.diffusion.sampler import standardise
from prdp.diffusion.transitions import Transitions, log_ratio
from prdp.learners.base import Learner, Progress, section
from prdp.learners.guards import unlearned
from prdp.types import Float64, Int64, Rollout, Weights

log = logging.getLogger(__name__)


class TorchLearner(Learner):
    """See `Learner`.

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
        super().__init__(transitions, config, objective)
        self._policy = policy
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

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        tensors = {f"weights/{name}": value.detach().cpu().numpy().copy() for name, value in self._parameters.items()}
        for name, value in self._parameters.items():
            for key, entry in self._optimizer.state.get(value, {}).items():
                tensors[f"optimizer/{key}/{name}"] = entry.detach().cpu().numpy().copy()
        for name, kept in (self._average or {}).items():
            tensors[f"ema/{name}"] = kept.cpu().numpy().copy()
        return tensors, {"updates": self._updates}

    def load_state(self, tensors: Mapping[str, np.ndarray], scalars: Mapping[str, Any]) -> None:
        self._policy.weights.bind(Weights.of(int(scalars["updates"]), section(tensors, "weights/")))
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
            kept = section(tensors, "ema/")
            self._policy.weights.check(kept)
            self._average = {
                name: torch.from_numpy(np.array(kept[name])).to(value.device) for name, value in self._average.items()
            }

    def _encode(self, prompts: Sequence[str]) -> torch.Tensor:
        return self._policy.encode_prompts(prompts)

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

    def _apply(self, learning_rate: float, ema_decay: float) -> dict[str, float]:
        without = unlearned({name: value.grad for name, value in self._parameters.items()}, first=self._updates == 0)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._config.max_grad_norm)
        if not torch.isfinite(norm):
            bad = next(n for n, p in self._parameters.items() if p.grad is not None and not p.grad.isfinite().all())
            raise ValueError(f"the gradient of update {self._updates} is not finite, first in tensor '{bad}'")
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        if self._average is not None:
            with torch.no_grad():
                for name, value in self._average.items():
                    value.lerp_(self._parameters[name].detach(), 1.0 - ema_decay)
        return {"grad_norm": norm.item(), "parameters_without_gradient": float(len(without))}
