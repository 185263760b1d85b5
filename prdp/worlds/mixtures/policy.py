"""The policy of the world of mixtures: exact noise predictions of each prompt's mixture, corrected by a network."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion.conditions import Conditions
from prdp.diffusion.guidance import guided
from prdp.diffusion.process import Process
from prdp.diffusion.variance_preserving import VariancePreserving, alphas_cumprod
from prdp.diffusion.weights import TrainableWeights
from prdp.types import UInt8
from prdp.worlds.mixtures.coordinates import encode_points
from prdp.worlds.mixtures.grammar import ATTRIBUTES, parse_all
from prdp.worlds.mixtures.world import COMPONENTS, features, reference_mixtures

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 1.0e-4,
    "beta_end": 2.0e-2,
    "beta_schedule": "linear",
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "prediction_type": "epsilon",
}
"""Of Ho et al. 2020: at its end a signal of 0.006 is left, so that x_T says next to nothing of x_0."""

LATENT_SHAPE: tuple[int, ...] = (2, 1, 1)
"""Of a point."""
_WIDTH = 64
_FREQUENCIES = 4
_TEXT = len(ATTRIBUTES)


class CorrectedMixtures(torch.nn.Module):
    """Epsilon of noised mixtures in closed form, plus a multilayer perceptron whose last layer starts at zero.

    Only the perceptron has parameters. It sees x_t, the closed form, the time and the prompt's attributes, and neither
    the mixture's nor the reward's parameters.

    Args:
        seed: of the first layers.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        signal = np.sqrt(alphas_cumprod(SCHEDULER))
        self.signal = torch.nn.Buffer(torch.from_numpy(signal.astype(np.float32)), persistent=False)
        self.spread = torch.nn.Buffer(torch.from_numpy(np.sqrt(1.0 - signal**2).astype(np.float32)), persistent=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            last = torch.nn.Linear(_WIDTH, 2)
            self.correction = torch.nn.Sequential(
                torch.nn.Linear(4 + 2 * _FREQUENCIES + _TEXT, _WIDTH),
                torch.nn.SiLU(),
                torch.nn.Linear(_WIDTH, _WIDTH),
                torch.nn.SiLU(),
                last,
            )
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)

    def forward(self, points: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Epsilon [B, 2] at noised points [B, 2], timesteps int64 [B] and prompts' states [B, width]."""
        with torch.no_grad():
            exact = exact_epsilon(points, self.signal[timesteps], self.spread[timesteps], states[:, _TEXT:])
            phases = timesteps[:, None] / len(self.signal) * torch.arange(1, _FREQUENCIES + 1).to(points) * math.pi
            inputs = torch.cat([points, exact, phases.sin(), phases.cos(), states[:, :_TEXT]], 1)
        return exact + self.correction(inputs)


def exact_epsilon(
    points: torch.Tensor, signal: torch.Tensor, spread: torch.Tensor, mixtures: torch.Tensor
) -> torch.Tensor:
    """E[epsilon | x_t] = -spread * score of the mixture noised to x_t = signal x_0 + spread epsilon, [B, 2].

    Args:
        points: x_t, [B, 2].
        signal, spread: [B].
        mixtures: [B, 6 K], a row for each: K log weights, 2 K means, and xx, xy, yy of K covariances.
    """
    log_weights, means, covariances = mixtures.split((COMPONENTS, 2 * COMPONENTS, 3 * COMPONENTS), 1)
    signal, spread = signal[:, None], spread[:, None]
    shared = spread.square()
    xx, xy, yy = (signal.square() * part for part in covariances.unflatten(1, (3, COMPONENTS)).unbind(1))
    xx, yy = xx + shared, yy + shared
    determinant = xx * yy - xy.square()
    offset_x, offset_y = (
        points[:, axis : axis + 1] - signal * part
        for axis, part in enumerate(means.unflatten(1, (2, COMPONENTS)).unbind(1))
    )
    force_x = (yy * offset_x - xy * offset_y) / determinant
    force_y = (xx * offset_y - xy * offset_x) / determinant
    energy = 0.5 * (offset_x * force_x + offset_y * force_y + determinant.log())
    responsibilities = (log_weights - energy).softmax(1)
    return spread * torch.stack([(responsibilities * force).sum(1) for force in (force_x, force_y)], 1)


class GaussianMixturesPolicy:
    """Answers `prdp.diffusion.policy.Policy`; latents are points, float32 [B, 2, 1, 1].

    Raises:
        ValueError: settings that this family does not know.
    """

    def __init__(
        self, model: ModelConfig, learner: LearnerConfig, *, seed: int = 0, keep_reference: bool = True
    ) -> None:
        if learner.mode == "lora":
            raise ValueError("learner.mode is 'lora', expected full for model.family=gaussian_mixtures")
        if model.adapters or learner.init_adapter:
            raise ValueError("model.adapters and learner.init_adapter must be empty for model.family=gaussian_mixtures")
        self.device = torch.device("cpu" if model.device == "auto" else model.device)
        self.latent_shape = LATENT_SHAPE
        self.scheduler_config: Mapping[str, Any] = SCHEDULER
        self.process: Process = VariancePreserving(SCHEDULER)
        self.precision = "float32"
        self.network = CorrectedMixtures(seed).to(self.device)
        self.weights = TrainableWeights(self.network, learner.mode, keep_reference=keep_reference)

    @classmethod
    def load(
        cls,
        model: ModelConfig,
        learner: LearnerConfig,
        *,
        seed: int = 0,
        keep_reference: bool = True,
        only_network: bool = False,
    ) -> GaussianMixturesPolicy:
        """There is nothing to read: `model.path` names nothing."""
        return cls(model, learner, seed=seed, keep_reference=keep_reference)

    @staticmethod
    def check(model: ModelConfig) -> None:
        """Formulas have no files to check."""

    @staticmethod
    def learner_problems(model: ModelConfig, learner: LearnerConfig) -> list[str]:
        """What it does not know the bounds of the configuration tell."""
        return []

    @staticmethod
    def process_of(model: ModelConfig) -> Process:
        """The one process of this world."""
        return VariancePreserving(SCHEDULER)

    @staticmethod
    def latent_shape_of(model: ModelConfig) -> tuple[int, ...]:
        """Of a point."""
        return LATENT_SHAPE

    @staticmethod
    def picture_size_of(model: ModelConfig) -> tuple[int, int]:
        """Of `encode_points`."""
        return 1, 2

    def encode(self, prompts: Sequence[str]) -> Conditions:
        """`states`: the attributes in [-1, 1] and the parameters of the mixture, float32 [B, 6 + 6 K]."""
        attributes = parse_all(prompts)
        mixtures = reference_mixtures(attributes)
        flat = [
            features(attributes),
            mixtures.log_weights,
            *(mixtures.means[:, :, axis] for axis in range(2)),
            *(mixtures.covariances[:, :, row, column] for row, column in ((0, 0), (0, 1), (1, 1))),
        ]
        return Conditions({"states": torch.from_numpy(np.concatenate(flat, 1).astype(np.float32)).to(self.device)})

    def output(
        self,
        latents: torch.Tensor,
        times: torch.Tensor,
        conditions: Conditions,
        guidance_scale: float,
        network: torch.nn.Module | None = None,
    ) -> torch.Tensor:
        """Epsilon, float32 [B, 2, 1, 1]; there is no unconditional branch to guide with.

        Raises:
            ValueError: guidance_scale is above 1.
        """
        if guided(guidance_scale):
            raise ValueError(
                f"sampler.guidance_scale is {guidance_scale}, expected at most 1 for model.family=gaussian_mixtures"
            )
        states = conditions.fields["states"]
        return (network or self.network)(latents.flatten(1), times.long(), states).view_as(latents)

    def float32(self) -> AbstractContextManager[None]:
        """Nothing to do: this family computes in float32 alone."""
        return nullcontext()

    @contextmanager
    def reference(self) -> Iterator[torch.nn.Module]:
        """The network as it started, to be passed to `output` as `network`."""
        with self.weights.reference() as network:
            yield network

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> UInt8:
        """Points as pictures, uint8 [B, 1, 2, 3]; see `prdp.worlds.mixtures.coordinates`."""
        return encode_points(latents.flatten(1).cpu().numpy())

    def usage(self, model: ModelConfig, sampler: SamplerConfig, mode: str, weights: Path, prompt: str) -> str:
        """Empty: diffusers has no such model."""
        return ""

    def save(self, folder: Path) -> None:
        """Write the correction as correction.safetensors beside a config.json that names the family.

        Raises:
            ValueError: what was written, read back, is not what was learned; names a tensor.
        """
        from safetensors.torch import save_file

        from prdp.diffusion.pipeline_files import check_network

        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(self.network.state_dict()), folder / "correction.safetensors")
        check_network(folder, self.weights.parameters)
        (folder / "config.json").write_text(json.dumps({"family": "gaussian_mixtures"}) + "\n", encoding="utf-8")
