"""A small float64 policy, so that gradients can be compared to the last digits."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prdp.diffusion.conditions import Conditions
from prdp.diffusion.variance_preserving import VariancePreserving
from prdp.types import PromptBatch, Rollout, Weights

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}


class StubWeights:
    """The part of `TrainableWeights` that the learner uses."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.parameters = dict(network.named_parameters())
        self.network = network
        self.frozen = network

    def networks(self) -> list[torch.nn.Module]:
        return [self.network]

    def keep_reference(self) -> None:
        self.frozen = copy.deepcopy(self.network).requires_grad_(False)

    def export(self, version: int) -> Weights:
        return Weights.of(version, {n: v.detach().numpy().copy() for n, v in self.parameters.items()})

    def bind(self, weights: Weights) -> str:
        self.check(weights.tensors)
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(torch.from_numpy(np.array(weights.tensors[name])))
        return weights.checksum

    def check(self, tensors: Any) -> None:
        if tensors.keys() != self.parameters.keys():
            raise ValueError("names differ")


class StubPolicy:
    """Two-layer network on flattened latents, timestep and a one-number prompt state."""

    latent_shape = (2, 2, 2)
    precision = "float32"
    device = torch.device("cpu")

    def __init__(self, seed: int = 0, scheduler: Mapping[str, Any] = SCHEDULER) -> None:
        self.scheduler_config = scheduler
        self.process = VariancePreserving(scheduler)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = torch.nn.Sequential(
                torch.nn.Linear(10, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8)
            ).double()
        self.weights: Any = StubWeights(self.network)

    def encode(self, prompts: Sequence[str]) -> Conditions:
        return Conditions({"states": torch.tensor([[float(len(prompt))] for prompt in prompts], dtype=torch.float64)})

    def output(
        self,
        latents: torch.Tensor,
        times: torch.Tensor,
        conditions: Conditions,
        guidance_scale: float,
        network: torch.nn.Module | None = None,
    ) -> torch.Tensor:
        states = conditions.fields["states"] / 10.0
        flat = torch.cat([latents.flatten(1), times[:, None] / 1000.0, states], dim=1)
        return (network or self.network)(flat).view_as(latents)

    def float32(self) -> Any:
        return nullcontext()

    def reference(self) -> Any:
        return nullcontext(self.weights.frozen)

    def decode(self, latents: torch.Tensor) -> Any:
        return np.zeros((len(latents), 4, 4, 3), np.uint8)

    def save(self, folder: Path) -> None:
        raise AssertionError("not part of these tests")


def stub_rollout(policy: StubPolicy, transitions: Any, *, prompts: int = 3, size: int = 4, seed: int = 0) -> Rollout:
    """Random trajectories in float64 with the log-ratios of `policy` against a random reference, at version 0."""
    from prdp.diffusion.transitions import log_ratio, standardise

    rng = np.random.default_rng(seed)
    steps, count = len(transitions.noisy), prompts * size
    latents = rng.normal(size=(count, steps + 1, *policy.latent_shape))
    reference = rng.normal(size=(count, steps, *policy.latent_shape)) * 0.1
    texts = tuple("x" * (i + 1) for i in range(prompts))
    states = policy.encode([text for text in texts for _ in range(size)])
    ratios, outputs = np.empty((count, steps)), np.empty_like(reference)
    with torch.no_grad():
        for step in range(steps):
            x, following = torch.from_numpy(latents[:, step]), torch.from_numpy(latents[:, step + 1])
            rows = torch.full((count,), step)
            times = torch.full((count,), float(transitions.times[step]), dtype=torch.float64)
            output = policy.output(x, times, states, 1.0)
            z, d = standardise(transitions, rows, x, following, output, torch.from_numpy(reference[:, step]))
            ratios[:, step], outputs[:, step] = log_ratio(z, d).numpy(), output.numpy()
    rewards = rng.normal(size=count)
    return Rollout(
        prompts=PromptBatch(0, 0, texts, tuple({} for _ in texts)),
        images_per_prompt=size,
        stored={
            "latents": latents,
            "base_output": reference,
            "policy_output": outputs,
            "log_ratio": ratios,
            "steps": np.tile(np.arange(steps), (count, 1)),
            "step_latents": latents[:, :-1],
            "step_outputs": outputs,
            "final_latents": rng.normal(size=(count, *policy.latent_shape)),
        },
        conditions=policy.encode(texts).to_arrays()[0],
        images=np.zeros((count, 4, 4, 3), np.uint8),
        weights_version=0,
        weights_checksum=policy.weights.export(0).checksum,
        rewards=rewards,
    )
