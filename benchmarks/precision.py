"""What half precision does to log-ratios and gradients, on the embedded pipeline; three Markdown tables.

    python benchmarks/precision.py

The first table is of the outputs that log-ratios are relative to, stored in float16 (`objective.output_dtype`). The
second compares forms of the log-ratio of policy and reference with float64, for a policy near its start and one farther
away. The third compares updates of runs with those of a float32 learner on float64 evidence, the second update of an
epoch from the same weights.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_policy
from prdp.diffusion.sampler import Sampler
from prdp.diffusion.transitions import log_ratio, standardise
from prdp.evidence.trajectory import TrajectoryRecorder
from prdp.learners import build_learner
from prdp.types import PromptBatch, Rollout, Weights

TEXTS = ("a large solid red circle on a white background", "two small striped green triangles on a black background")
PROMPTS = PromptBatch(0, 0, TEXTS, ({}, {}))
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
Form = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Latents, timesteps and states to the policy's output and its difference from the reference's."""


def config(autocast: str | None = None, rate: float = 1e-5) -> LearnerConfig:
    return LearnerConfig(lora_rank=8, learning_rate=rate, max_grad_norm=1e9, autocast=autocast, ratio_tolerance=1e9)


def sampling(guidance: float) -> SamplerConfig:
    return SamplerConfig(steps=4, guidance_scale=guidance, timestep_spacing="trailing", deterministic_final_steps=1)


class Run:
    """A policy, its sampler and its learner; with `all_half` also the passes without gradient are in half precision."""

    def __init__(
        self, guidance: float, dtype: str = "float32", autocast: str | None = None, clip: float = 1e-4,
        rate: float = 1e-5, all_half: bool = False,
    ) -> None:  # fmt: skip
        learner = config(autocast, rate)
        self.policy: Any = build_policy(ModelConfig(dtype=dtype, device="cpu"), learner, seed=0, keep_reference=False)
        if all_half:
            self.policy.float32 = nullcontext
        self.table = self.policy.process.transitions(sampling(guidance))
        self.guidance = guidance
        objective = {"name": "prdp", "clip_range": clip}
        self.learner = build_learner(self.policy, self.table, guidance, learner, objective)
        self.learner._watch.check_clip = lambda update: None  # type: ignore[method-assign]

    def rollout(self, weights: Weights, seed: int, images: int = 4) -> Rollout:
        sampler = Sampler(self.policy, sampling(self.guidance), recorder=TrajectoryRecorder())
        if weights.version:
            sampler.load_weights(weights)
        rollout = sampler.sample(PROMPTS, images, seed=seed)
        return rollout.scored(np.random.default_rng(seed).normal(size=len(rollout)), {})

    def gradient(self) -> torch.Tensor:
        return torch.cat([value.grad.flatten().double() for value in self.policy.weights.parameters.values()])


def moved(guidance: float, rate: float, updates: int) -> Run:
    """A float32 run some updates from its start, on one rollout of the reference."""
    run = Run(guidance, rate=rate)
    rollout = run.rollout(run.learner.weights(), seed=1)
    for _ in range(updates):
        run.learner.update(dataclasses.replace(rollout, weights_version=-1))
    return run


def evaluate(run: Run, rollout: Rollout, form: Form) -> tuple[np.ndarray, np.ndarray]:
    """Log-ratios [n, T] and outputs of the reference [n, T, C, h, w] of stored transitions, by a form."""
    states = run.policy.encode(TEXTS).fields["states"].repeat_interleave(rollout.images_per_prompt, 0)
    ratios, references = [], []
    with torch.no_grad():
        for step in range(rollout.stored["log_ratio"].shape[1]):
            latents, following = (torch.from_numpy(rollout.stored["latents"][:, step + offset]) for offset in (0, 1))
            rows = torch.full((len(latents),), step)
            timesteps = torch.full((len(latents),), float(run.table.times[step]))
            output, difference = form(latents, timesteps, states)
            reference = output - difference
            z, _ = standardise(run.table, rows, latents, following, output, reference)
            _, d = standardise(run.table, rows, latents, following, difference, torch.zeros_like(difference))
            ratios.append(log_ratio(z, d).double().numpy())
            references.append(reference.numpy())
    return np.stack(ratios, 1), np.stack(references, 1)


@contextmanager
def last_block_in_float32(unet: Any) -> Iterator[None]:
    parts = [unet.up_blocks[-1], unet.conv_norm_out, unet.conv_out]

    def wide(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(wide(part) for part in value)
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def in_float32(forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with torch.autocast("cpu", enabled=False):
                return forward(*wide(arguments), **{name: wide(value) for name, value in named.items()})

        return call

    for part in parts:
        part.forward = in_float32(part.forward)
    yield
    for part in parts:
        del part.forward


class Forms:
    """Ways to the difference of policy and reference; `run` keeps its weights."""

    def __init__(self, run: Run) -> None:
        self.unet, self.guidance = run.policy.network, run.guidance
        self.empty = run.policy.encode([""]).fields["states"]

    def inputs(self, latents: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor) -> list[torch.Tensor]:
        if self.guidance == 1:
            return [latents, timesteps, states]
        twice = torch.cat([self.empty.expand_as(states), states])
        return [torch.cat([latents] * 2), torch.cat([timesteps] * 2), twice]

    def guided(self, output: torch.Tensor) -> torch.Tensor:
        if self.guidance == 1:
            return output
        unconditional, conditional = output.chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)

    def call(self, inputs: list[torch.Tensor], half: str | None) -> torch.Tensor:
        with torch.autocast("cpu", HALF[half]) if half else nullcontext():
            output: torch.Tensor = self.unet(*inputs, return_dict=False)[0]
        return output.float() if half else output

    def two_passes(self, half: str | None) -> Form:
        def form(*given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            output = self.guided(self.call(self.inputs(*given), half))
            self.unet.disable_adapters()
            reference = self.guided(self.call(self.inputs(*given), half))
            self.unet.enable_adapters()
            return output, output - reference

        return form

    def one_batch(self, half: str) -> Form:
        def form(*given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            inputs = self.inputs(*given)
            count = len(inputs[0])

            def off(module: Any, arguments: Any, added: torch.Tensor) -> torch.Tensor:
                return torch.cat([added[:count], torch.zeros_like(added[count:])])

            adapters = [part for name, part in self.unet.named_modules() if name.endswith("lora_B.default")]
            hooks = [part.register_forward_hook(off) for part in adapters]
            both = self.call([torch.cat([value] * 2) for value in inputs], half)
            for hook in hooks:
                hook.remove()
            output, reference = self.guided(both[:count]), self.guided(both[count:])
            return output, output - reference

        return form

    def last_block(self, half: str) -> Form:
        def form(*given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            with last_block_in_float32(self.unet):
                return self.two_passes(half)(*given)

        return form

    def derivative(self, half: str | None) -> Form:
        """Along the adapters, at half of them: forward-mode differentiation."""
        from diffusers.models.attention_processor import AttnProcessor
        from torch.func import functional_call, jvp

        precision = HALF[half] if half else torch.float32

        def form(*given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            kept = self.unet.attn_processors
            self.unet.set_attn_processor(AttnProcessor())
            tensors = {name: value.detach().to(precision) for name, value in self.unet.named_parameters()}
            ups = {name: value for name, value in tensors.items() if "lora_B" in name}
            latents, timesteps, states = self.inputs(*given)
            inputs = (latents.to(precision), timesteps, states.to(precision))

            def at(changed: dict[str, torch.Tensor]) -> torch.Tensor:
                output: torch.Tensor = functional_call(
                    self.unet, {**tensors, **changed}, inputs, {"return_dict": False}
                )[0]
                return output

            middle, change = jvp(at, ({name: value / 2 for name, value in ups.items()},), (ups,))
            self.unet.set_attn_processor(kept)
            output, difference = self.guided(middle.float()), self.guided(change.float())
            return output + difference / 2, difference

        return form


def exactly(guidance: float, weights: Weights, rollout: Rollout, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """`evaluate` in float64, with weights as `dtype` stores them."""
    run = Run(guidance, dtype)
    run.policy.weights.bind(weights)
    forms = Forms(run)
    run.policy.network.double()
    forms.empty = forms.empty.double()

    def form(*given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latents, timesteps, states = given
        return forms.two_passes(None)(latents.double(), timesteps, states.double())

    return evaluate(run, rollout, form)


def compare_forms() -> None:
    print("| log-ratio by | guidance | largest true | error, largest | error, mean | seconds |")
    print("|---|---|---|---|---|---|")
    for guidance, rate, updates in ((1.0, 1e-5, 1), (1.0, 1e-3, 4), (3.0, 1e-3, 4)):
        run = moved(guidance, rate, updates)
        weights = run.learner.weights()
        rollout = run.rollout(weights, seed=2)
        truth, _ = exactly(guidance, weights, rollout, "float32")
        forms = Forms(run)
        named: dict[str, Form] = {
            "float32": forms.two_passes(None),
            "derivative, float32": forms.derivative(None),
        }
        for half in HALF:
            named |= {
                f"{half}": forms.two_passes(half),
                f"{half}, one batch": forms.one_batch(half),
                f"{half}, last block float32": forms.last_block(half),
                f"derivative, {half}": forms.derivative(half),
            }
        for name, form in named.items():
            start = time.perf_counter()
            error = np.abs(evaluate(run, rollout, form)[0] - truth)
            seconds = time.perf_counter() - start
            print(
                f"| {name} | {guidance:g} | {np.abs(truth).max():.1e} | {error.max():.1e} | {error.mean():.1e} | "
                f"{seconds:.1f} |",
                flush=True,
            )


def compare_runs() -> None:
    print("\n| evidence | gradient | guidance | error | `evidence_noise` | first update | clip | second | clipfrac |")
    print("|---|---|---|---|---|---|---|---|---|")
    kinds = [
        *((dtype, autocast, False) for dtype, autocast in (("float32", None), ("float32", "bfloat16"))),
        *(("float32", "float16", False), ("bfloat16", None, False), ("float16", None, False)),
        *(("float32", half, True) for half in HALF),
    ]
    for guidance in (1.0, 3.0):
        start = moved(guidance, 1e-5, 1)
        state, weights = start.learner.state(), start.learner.weights()
        for dtype, autocast, all_half in kinds:
            half = autocast or dtype
            rollout = Run(guidance, dtype, autocast, all_half=all_half).rollout(weights, seed=2, images=2)
            ratios, references = exactly(guidance, weights, rollout, dtype)
            true = rollout.storing(log_ratio=ratios.astype(np.float32), base_output=references.astype(np.float32))
            error = np.abs(rollout.stored["log_ratio"] - ratios).max()
            for clip in (1e-6, 1e-4):
                ours = Run(guidance, dtype, autocast, clip, all_half=all_half)
                exact = Run(guidance, dtype, clip=clip)
                # The same stored weights, computed with in float32.
                exact.policy.network.float()
                exact.policy.precision, exact.policy._in_float32 = "float32", True
                exact.learner.load_state(*state)
                ours.learner.load_state(*state)
                cosines, fractions, noise = [], [], 0.0
                for _ in range(2):
                    exact_metrics = exact.learner.update(true)
                    metrics = ours.learner.update(rollout)
                    noise = max(noise, metrics.get("evidence_noise", 0.0))
                    cosines.append(torch.nn.functional.cosine_similarity(exact.gradient(), ours.gradient(), dim=0))
                    fractions = [metrics["clipfrac"], exact_metrics["clipfrac"]]
                    ours.learner.load_state(*exact.learner.state())
                print(
                    f"| {half if all_half else 'float32'} | {half}{' (model.dtype)' if dtype != 'float32' else ''} | "
                    f"{guidance:g} | {error:.1e} | {noise:.1e} | {cosines[0]:.4f} | {clip:.0e} | {cosines[1]:.4f} | "
                    f"{fractions[0]:.2f} of {fractions[1]:.2f} |",
                    flush=True,
                )


def compare_stored_outputs() -> None:
    """Log-ratios relative to outputs that are stored in float16, against those relative to the exact ones."""
    print("\n| guidance | updates from the start | log-ratio, root mean square | changed by, at most | on average |")
    print("|---|---|---|---|---|")
    for guidance in (1.0, 3.0):
        for updates, rate in ((1, 1e-5), (4, 1e-3)):
            run = moved(guidance, rate, updates)
            weights = run.learner.weights()
            ratios = []
            for kind in ("float32", "float16"):
                sampler = Sampler(run.policy, sampling(guidance), recorder=TrajectoryRecorder(output_dtype=kind))
                sampler.load_weights(weights)
                ratios.append(sampler.sample(PROMPTS, 4, seed=2).stored["log_ratio"].astype(np.float64))
            change = np.abs(ratios[1] - ratios[0])
            size = float(np.sqrt(np.square(ratios[0]).mean()))
            row = f"| {guidance:g} | {updates}, rate {rate:g} | {size:.1e} | {change.max():.1e} | {change.mean():.1e} |"
            print(row, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    compare_stored_outputs()
    compare_forms()
    compare_runs()
