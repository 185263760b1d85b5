"""Outputs of four policies for noised latents of a flow, from which losses are compared with their authors' code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from prdp.diffusion.rectified_flow import RectifiedFlow
from prdp.evidence import Denoising
from prdp.evidence.base import Of
from prdp.evidence.denoising import Noised
from prdp.objectives import Coefficients, Objective

IMAGES, DRAWS, SHAPE = 6, 2, (2, 2, 2)
REWARDS = np.array([0.5, 1.25, -0.25, 0.1, 0.3, 0.9])
GROUP_IDS = np.repeat([0, 1], 3)


@dataclass
class FlowOutputs:
    """Float64 tensors [IMAGES, DRAWS, *SHAPE], but for `clean` [IMAGES, *SHAPE] and `times` [IMAGES, DRAWS].

    The outputs of the old policy, of the one that an epoch starts from and of the learning one lie ever farther from
    those of the reference, which are some way from the target.
    """

    clean: torch.Tensor
    noise: torch.Tensor
    times: np.ndarray
    outputs: Mapping[Of, torch.Tensor]

    @classmethod
    def drawn(cls, shared: bool) -> FlowOutputs:
        """All from one seed; times and noise are shared by the images of a group, or by none."""
        rng = np.random.default_rng(3)
        clean = torch.from_numpy(rng.normal(size=(IMAGES, *SHAPE)))
        noise = torch.from_numpy(rng.normal(size=(IMAGES, DRAWS, *SHAPE)))
        times = rng.uniform(0.05, 1, size=(IMAGES, DRAWS))
        if shared:
            first = np.repeat([0, 3], 3)
            noise, times = noise[first], times[first]
        outputs: dict[Of, torch.Tensor] = {}
        steps: dict[Of, float] = {"reference": 0.5, "old": 0.1, "sampled": 0.1, "policy": 0.2}
        last = noise - clean[:, None]
        for name, step in steps.items():
            last = outputs[name] = last + step * torch.from_numpy(rng.normal(size=noise.shape))
        return cls(clean, noise, times, outputs)

    def evaluated(self, objective: Objective) -> tuple[Coefficients, np.ndarray]:
        """The loss, and its gradient by the policy's outputs."""
        evidence = objective.evidence
        assert isinstance(evidence, Denoising)
        process, times, clean = RectifiedFlow({}), self.times.ravel(), self.clean.repeat_interleave(DRAWS, 0)
        cells = Noised(process, clean, times, *process.noised(clean, times, self.noise.flatten(0, 1)))
        flat = {name: output.flatten(0, 1) for name, output in self.outputs.items()}
        policy = flat["policy"].requires_grad_()

        def channel(name: str, output: torch.Tensor) -> torch.Tensor:
            return evidence.channel(name, output, flat, cells).view(IMAGES, DRAWS)

        channels = {name: channel(name, policy) for name in objective.channels}
        data = {
            name: channel(part, flat[of]).numpy()
            for name, (part, of) in evidence.passes.items()
            if name in objective.arrays
        }
        values = {name: values.detach().numpy() for name, values in channels.items()}
        result = objective.coefficients(values, {**data, "rewards": REWARDS, "group_ids": GROUP_IDS})
        parts = [(torch.from_numpy(table) * channels[name]).sum() for name, table in result.tables.items()]
        torch.stack(parts).sum().backward()
        assert policy.grad is not None
        return result, policy.grad.view(self.noise.shape).numpy()
