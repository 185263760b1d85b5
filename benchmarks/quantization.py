"""What a frozen network of fewer bits does to log-ratios and gradients, on every family; a Markdown table.

    python benchmarks/quantization.py

Of each family a LoRA of rank 8 after three updates at rate 1e-3, guidance off. Errors are against float64 of the same
quantised network; the change is that of the network's output by quantisation, relative, root mean square.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
import torch

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_policy
from prdp.diffusion.quantization import QuantizedLinear
from prdp.diffusion.sampler import Sampler
from prdp.evidence.trajectory import TrajectoryRecorder, stored_positions
from prdp.learners import build_learner
from prdp.types import PromptBatch, Rollout, Weights

PROMPTS = PromptBatch(0, 0, ("a large solid red circle", "two small striped green triangles"), ({}, {}))
TARGETS = {"z_image": ["attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0"]}
FLOWS = ("stable_diffusion_3", "flux", "z_image")


def models(folder: Path) -> dict[str, ModelConfig]:
    """The embedded pipelines, which have learned, and narrow random networks of the other layouts."""
    from narrow_transformers import NARROW, TEXT_TOKENS
    from narrow_xl import narrow_xl

    found = {
        "stable_diffusion": ModelConfig(path="shapes", device="cpu"),
        "stable_diffusion_3": ModelConfig(family="stable_diffusion_3", path="shapes_flow", device="cpu"),
    }
    for family, make in (("stable_diffusion_xl", narrow_xl), ("flux", NARROW["flux"]), ("z_image", NARROW["z_image"])):
        make().save_pretrained(folder / family)
        tokens = TEXT_TOKENS.get(family)
        found[family] = ModelConfig(
            family=family, path=str(folder / family), height=32, width=32, max_sequence_length=tokens, device="cpu"
        )
    return found


def sampling(family: str) -> SamplerConfig:
    if family in FLOWS:
        return SamplerConfig(kind="flow_sde", steps=4, eta=0.7, guidance_scale=1.0, deterministic_final_steps=1)
    return SamplerConfig(steps=4, guidance_scale=1.0, timestep_spacing="trailing", deterministic_final_steps=1)


def learner(family: str, autocast: str | None = None) -> LearnerConfig:
    targets = TARGETS.get(family, ["to_q", "to_k", "to_v", "to_out.0"])
    return LearnerConfig(
        lora_rank=8, lora_targets=targets, learning_rate=1e-3, autocast=autocast, ratio_tolerance=1e9, max_grad_norm=1e9
    )


class Run:
    """A policy, its sampler and its learner."""

    def __init__(self, model: ModelConfig, autocast: str | None = None) -> None:
        config, settings = learner(model.family, autocast), sampling(model.family)
        self.policy: Any = build_policy(model, config, seed=0, keep_reference=False)
        self.table = self.policy.process.transitions(settings)
        self.sampler = Sampler(self.policy, settings, recorder=TrajectoryRecorder())
        self.learner: Any = build_learner(self.policy, self.table, 1.0, config, {"name": "prdp", "clip_range": 1e9})

    def rollout(self, weights: Weights, seed: int) -> Rollout:
        if weights.version:
            self.sampler.load_weights(weights)
        rollout = self.sampler.sample(PROMPTS, 4, seed=seed)
        return rollout.scored(np.random.default_rng(seed).normal(size=len(rollout)), {})

    def gradient(self) -> torch.Tensor:
        return torch.cat([value.grad.flatten().double() for value in self.policy.weights.parameters.values()])


def widened(network: torch.nn.Module) -> None:
    """Put plain float64 layers in the place of quantised ones."""
    for module in list(network.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, QuantizedLinear):
                plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
                plain.weight.data = layer.widened().double()
                if layer.bias is not None:
                    plain.bias.data = layer.bias.data.double()
                setattr(module, name, plain)
    network.double()


@torch.no_grad()
def exactly(model: ModelConfig, weights: Weights, rollout: Rollout) -> np.ndarray:
    """Log-ratios [n, T] of stored transitions in float64."""
    run = Run(model)
    run.policy.weights.bind(weights)
    conditions = run.policy.encode(rollout.image_prompts)
    if run.policy.embeds_guidance:
        conditions = run.policy._with_guidance(conditions, 1.0)
    conditions = conditions.map(lambda value: value.double() if value.is_floating_point() else value)
    widened(run.policy.network)
    found, table = [], run.table
    for column in range(rollout.stored["log_ratio"].shape[1]):
        steps, places = rollout.stored["steps"][:, column], stored_positions(rollout.stored["steps"])[:, column]
        rows = np.arange(len(rollout))
        x, then = (torch.from_numpy(rollout.stored["latents"][rows, places + one]).double() for one in (0, 1))
        times = torch.from_numpy(table.times[steps])
        with run.policy.reference() as reference:
            outputs = [run.policy._predict(reference, x, times, conditions).double()]
        outputs.append(run.policy._predict(run.policy.network, x, times, conditions).double())

        def of(values: np.ndarray, steps: np.ndarray = steps) -> torch.Tensor:
            return torch.from_numpy(values[steps]).view(-1, 1, 1, 1)

        before, now = (
            (then - of(table.sample_coef) * x - of(table.output_coef) * output) / of(table.sigma) for output in outputs
        )
        found.append(((before.square() - now.square()) / 2).flatten(1).mean(1).numpy())
    return np.stack(found, 1)


@torch.no_grad()
def change(plain: Run, other: Run) -> float:
    """Of the start's output by quantisation, relative."""
    latents = torch.from_numpy(plain.rollout(plain.learner.weights(), 5).stored["latents"][:, 1])
    times = torch.full((len(latents),), float(plain.table.times[1]))
    outputs = []
    for run in (plain, other):
        conditions = run.policy.encode([text for text in PROMPTS.texts for _ in range(4)])
        with run.policy.float32(), run.policy.reference() as reference:
            outputs.append(run.policy.output(latents, times, conditions, 1.0, reference))
    return float((outputs[1] - outputs[0]).norm() / outputs[0].norm())


def main() -> None:
    torch.set_num_threads(1)
    print("| family | bits | network, MiB | changed | largest log-ratio | error | `evidence_noise` | cosine |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for family, model in models(Path(folder)).items():
            plain = Run(model)
            for kind in (None, "int8", "nf4"):
                chosen = dataclasses.replace(model, quantization=kind)
                run, half = Run(chosen), Run(chosen, "bfloat16")
                first = run.rollout(run.learner.weights(), 1)
                for _ in range(3):
                    run.learner.update(dataclasses.replace(first, weights_version=-1))
                state, weights = run.learner.state(), run.learner.weights()
                rollout = run.rollout(weights, 2)
                truth = exactly(chosen, weights, rollout)
                error = np.abs(rollout.stored["log_ratio"] - truth).max()
                half.learner.load_state(*state)
                run.learner.update(rollout)
                noise = half.learner.update(rollout)["evidence_noise"]
                cosine = float(torch.nn.functional.cosine_similarity(run.gradient(), half.gradient(), dim=0))
                held = [value for name, value in run.policy.network.named_parameters() if ".lora_" not in name]
                size = sum(value.numel() * value.element_size() for value in held) / 2**20
                moved = "" if kind is None else f"{change(plain, run):.1e}"
                print(
                    f"| `{family}` | {kind or 'float32'} | {size:.2f} | {moved} | {np.abs(truth).max():.1e} | "
                    f"{error:.1e} | {noise:.1e} | {cosine:.4f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
