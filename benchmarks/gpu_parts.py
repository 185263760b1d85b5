"""What `gpu.py` measures of a model; every function is a part of its report, and may fail alone."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from gpu_models import Place, prompt_arguments
from torch.nn.attention import SDPBackend, sdpa_kernel

from prdp.config import SamplerConfig, TrainConfig
from prdp.configuration.memory_plan import device_plans
from prdp.diffusion.precision import repeated_blocks
from prdp.diffusion.rectified_flow import RectifiedFlow
from prdp.diffusion.sampler import Sampler
from prdp.learners import build_learner
from prdp.learners.learner import Learner
from prdp.types import PromptBatch, Rollout, Weights

DENOISING = {"name": "prdp", "evidence": "denoising", "beta": 1e-3, "clip_range": None, "draws": 3}
"""The default method: no trajectories, so that pictures are drawn in the precision of the network."""
TRAJECTORY = {"name": "prdp", "evidence": "trajectory", "beta": 1.0, "clip_range": None}
HALF, FULL = "bfloat16", "float32"


@dataclass(frozen=True)
class Measure:
    """A row of the report.

    Attributes:
        what: was measured.
        value: of it.
        unit: of the value.
        bound: what the value may not exceed, if it is a check.
        note: how it was measured.
    """

    what: str
    value: float
    unit: str = ""
    bound: float | None = None
    note: str = ""

    @property
    def right(self) -> bool | None:
        """Whether the check holds; None for no check."""
        return None if self.bound is None else bool(self.value <= self.bound)


Measures = Iterator[Measure]


class Bench:
    """A model with the policies that its parts share.

    Args:
        place: where it is built.
        repeats: of what is timed, after a warm-up; medians count.
        backend: of `torch.compile`.
    """

    def __init__(self, place: Place, repeats: int, backend: str = "inductor") -> None:
        self.place, self.repeats, self.backend = place, repeats, backend
        self.device = torch.device(place.device)
        layout = place.layout
        self.images, self.steps = (4, 3) if place.narrow else (layout.images, layout.steps)
        self._policy: tuple[tuple[str, int | None], Any] | None = None

    def policy(self, dtype: str, side: int | None = None) -> Any:
        """One is held at a time."""
        if self._policy is None or self._policy[0] != (dtype, side):
            self._policy = None
            self.free()
            self._policy = (dtype, side), self.place.policy(dtype, side)
        return self._policy[1]

    def free(self) -> None:
        """Give memory back."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    @property
    def cuda(self) -> bool:
        """Whether memory is counted."""
        return self.device.type == "cuda"

    def settings(self, policy: Any, noise: bool, **changes: Any) -> SamplerConfig:
        """The section `sampler` without guidance, with noise in its steps or without."""
        flow = isinstance(policy.process, RectifiedFlow)
        kind = ("flow_sde" if noise else "euler") if flow else "ddim"
        given = {"steps": self.steps, "eta": 0.7 if noise else 0.0, "microbatch": self.images}
        return SamplerConfig(**{"kind": kind, "guidance_scale": 1.0, **given, **changes})

    def learner(self, policy: Any, settings: SamplerConfig, objective: Mapping[str, Any], **changes: Any) -> Learner:
        """One that takes its policy for that of a version that has learned: the reference is another."""
        config = self.place.learner(ratio_tolerance=1e9, **{"microbatch": self.images, **changes})
        table = policy.process.transitions(settings)
        learner = build_learner(policy, table, settings.guidance_scale, config, objective, 0)
        learner._updates = 1
        return learner

    def rollout(self, policy: Any, settings: SamplerConfig, learner: Learner, prompts: int, images: int) -> Rollout:
        """Drawn by the policy, and scored at random."""
        sampler = Sampler(policy, settings, recorder=learner.recorder)
        sampler.load_weights(Weights.of(1, policy.weights.export(0).tensors))
        texts = tuple(f"a prompt of number {number}" for number in range(prompts))
        drawn = sampler.sample(PromptBatch(0, 0, texts, ({},) * prompts), images, 0)
        return drawn.scored(np.random.default_rng(0).random(len(drawn)), {})

    def seconds(self, work: Callable[[], Any], repeats: int | None = None, warm_up: bool = True) -> float:
        """Median wall time, the device idle before and after."""
        found = []
        for _ in range(warm_up + (self.repeats if repeats is None else repeats)):
            self.wait()
            begun = time.perf_counter()
            work()
            self.wait()
            found.append(time.perf_counter() - begun)
        return median(found[warm_up:])

    def wait(self) -> None:
        """Until the device is idle."""
        if self.cuda:
            torch.cuda.synchronize()

    def peak(self, work: Callable[[], Any]) -> float:
        """GiB that tensors took at most."""
        self.free()
        torch.cuda.reset_peak_memory_stats()
        work()
        self.wait()
        return torch.cuda.max_memory_allocated() / 2**30


def numbers(bench: Bench) -> Measures:
    """Float32: the stored log-ratios against recomputed ones, and the gradient against one graph of all cells."""
    policy = bench.policy(FULL, bench.place.layout.small)
    settings = bench.settings(policy, noise=True, steps=3)
    learner = bench.learner(policy, settings, TRAJECTORY, microbatch=3)
    rollout = bench.rollout(policy, settings, learner, 1, 2)
    expected = gradient_of_one_graph(policy, learner, rollout)
    metrics = learner.update(rollout)
    size = float(np.abs(rollout.stored["log_ratio"]).max())
    yield Measure("log-ratio to the reference, largest", size, note="adapters are random")
    yield Measure("log-ratio, stored against recomputed in other batches", metrics["ratio_error"], bound=1e-4)
    found = flat_gradient(policy)
    wrong = float((found - expected).abs().max() / expected.abs().max())
    yield Measure("gradient against autodiff of one graph, largest difference", wrong, "of the largest entry", 1e-3)
    yield Measure("the same, 1 - cosine", apart(found, expected), bound=1e-6)


def gradient_of_one_graph(policy: Any, learner: Learner, rollout: Rollout) -> torch.Tensor:
    """Of PRDP's loss of two images, by torch's normal distributions; flat."""
    table, stored = learner.engine.transitions, rollout.stored
    conditions = policy.encode(rollout.prompts.texts)[np.zeros(2, np.int64)]
    ratios = []
    for column, step in enumerate(stored["steps"][0]):
        rows = stored["latents"][:, column], stored["latents"][:, column + 1], stored["base_output"][:, column]
        before, after, base = (torch.from_numpy(one).to(policy.device) for one in rows)
        times = torch.full((2,), float(table.times[step]), device=policy.device)
        output = policy.output(before, times, conditions, 1.0)
        means = (table.mean(step, before, one) for one in (output, base))
        now, then = (torch.distributions.Normal(mean, float(table.sigma[step])) for mean in means)
        ratios.append((now.log_prob(after) - then.log_prob(after)).flatten(1).mean(1))
    score = torch.stack(ratios, 1).mean(1)
    rewards = torch.from_numpy(rollout.rewards).to(score)
    loss = (score[0] - score[1] - (rewards[0] - rewards[1]) / TRAJECTORY["beta"]) ** 2
    gradients = torch.autograd.grad(loss, list(policy.weights.parameters.values()))
    return torch.cat([value.flatten() for value in gradients])


def precision(bench: Bench) -> Measures:
    """Stored in bfloat16: how far float32 evidence moves when every rounding falls another way; and the gradient."""
    policy = bench.policy(HALF, bench.place.layout.small)
    settings = bench.settings(policy, noise=True, steps=3)
    learner = bench.learner(policy, settings, TRAJECTORY, microbatch=4)
    rollout = bench.rollout(policy, settings, learner, 1, 2)
    with widened(policy):
        full = gradient_of_one_graph(policy, learner, rollout)
    metrics = learner.update(rollout)
    yield Measure("noise of a log-ratio (evidence_noise)", metrics["evidence_noise"], bound=1e-4, note="a usual clip")
    yield Measure("log-ratio, stored against recomputed", metrics["ratio_error"], bound=1e-4)
    half = flat_gradient(policy)
    yield Measure("gradient in bfloat16 against float32, 1 - cosine", apart(half, full), bound=0.05)


@contextmanager
def widened(policy: Any) -> Iterator[None]:
    """All weights in float32, for a backward pass in it; `Policy.float32` is for passes without gradient."""
    learned = {name: value.detach().clone() for name, value in policy.weights.parameters.items()}
    stored, policy._in_float32 = policy.network.dtype, True
    policy.network.to(torch.float32)
    try:
        yield
    finally:
        policy.network.to(stored)
        policy._in_float32 = False
        for name, value in policy.weights.parameters.items():
            value.data = learned[name]


def flat_gradient(policy: Any) -> torch.Tensor:
    """What the last update has left."""
    return torch.cat([value.grad.flatten() for value in policy.weights.parameters.values()])


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """1 - cosine of two gradients."""
    return max(1.0 - float(torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=0)), 0.0)


def speed(bench: Bench) -> Measures:
    """In bfloat16: pictures and updates a second, beside diffusers' own loop and the bare passes of the same work."""
    policy = bench.policy(HALF)
    settings = bench.settings(policy, noise=False)
    learner = bench.learner(policy, settings, DENOISING)
    count, table = bench.images, learner.engine.transitions
    conditions = policy.encode(["one"] * count)
    latents = torch.randn(count, *policy.latent_shape, device=policy.device)

    def bare_drawing() -> None:
        with torch.no_grad():
            for time_ in table.times:
                policy.output(latents, torch.full((count,), float(time_), device=policy.device), conditions, 1.0)
            policy.decode(latents)

    def diffusers_loop() -> None:
        height, width = policy.picture_size
        with torch.autocast(policy.device.type, torch.bfloat16):
            policy.pipeline(
                **prompt_arguments(conditions), num_inference_steps=bench.steps, guidance_scale=1.0, height=height,
                width=width, output_type="np",
            )  # fmt: skip

    def drawing() -> Rollout:
        return bench.rollout(policy, settings, learner, 1, count)

    ours, bare, theirs = (bench.seconds(work) for work in (drawing, bare_drawing, diffusers_loop))
    yield Measure("pictures drawn", count / ours, "images/s", note=f"{count} at a time, {bench.steps} steps, unguided")
    yield Measure("time beside the bare passes and decoding", ours / bare, "x")
    yield Measure("time beside diffusers' pipeline", ours / theirs, "x")

    rollout = drawing()
    cells = count * DENOISING["draws"]
    times = torch.full((bench.images,), float(table.times[0]), device=policy.device)

    def bare_evidence() -> None:
        with torch.no_grad(), policy.float32():
            for _ in range(-(-cells // bench.images)):
                with policy.reference() as network:
                    policy.output(latents, times, conditions, 1.0, network)
                policy.output(latents, times, conditions, 1.0)

    def bare_gradient() -> None:
        for _ in range(-(-cells // bench.images)):
            policy.output(latents, times, conditions, 1.0).square().mean().backward()

    works = (lambda: learner.update(rollout), bare_evidence, bare_gradient)
    learned, evidence, gradient = (bench.seconds(work) for work in works)
    copies = f"{DENOISING['draws']} noised copies of each"
    yield Measure("images learned from", count / learned, "images/s", note=copies)
    yield Measure("time of an update beside its bare passes", learned / (evidence + gradient), "x")
    yield Measure("of these, evidence in float32", evidence / (evidence + gradient), "of the time", note="no TF32")

    noisy = bench.settings(policy, noise=True)
    recorder = bench.learner(policy, noisy, TRAJECTORY)
    seconds = bench.seconds(lambda: bench.rollout(policy, noisy, recorder, 1, count), 1, warm_up=False)
    yield Measure(
        "pictures drawn with trajectories", count / seconds, "images/s", note="policy and reference in float32"
    )


def memory(bench: Bench) -> Measures:
    """The plan of `prdp validate` for one process against what tensors took."""
    policy = bench.policy(HALF)
    settings = bench.settings(policy, noise=False)
    [plan] = device_plans(run_config(bench, settings))
    held = sum(plan.held.values())
    planned = {
        part: (held + max(size for what, size in plan.passing.items() if what.split()[0] in words)) / 2**30
        for part, words in (("drawing", ("drawing", "decoding")), ("learning", ("learning", "computing")))
    }
    learner = bench.learner(policy, settings, DENOISING)
    for part, size in planned.items():
        yield Measure(f"planned, {part}", size, "GiB")
    if not bench.cuda:
        return
    rollout = bench.rollout(policy, settings, learner, 1, bench.images)
    learner.update(rollout)
    works = {
        "drawing": lambda: bench.rollout(policy, settings, learner, 1, bench.images),
        "learning": lambda: learner.update(rollout),
    }
    for part, work in works.items():
        measured = bench.peak(work)
        yield Measure(f"measured, {part}", measured, "GiB")
        yield Measure(f"measured over planned, {part}", measured / planned[part], "x", 1.1)


def run_config(bench: Bench, settings: SamplerConfig, **changes: Any) -> TrainConfig:
    """A run of these sizes, for its plans."""
    learner = bench.place.learner(microbatch=bench.images)
    given = {"prompts_per_epoch": 1, "images_per_prompt": bench.images, "objective": DENOISING}
    return TrainConfig(
        output_dir="x", reward={"_target_": "x"}, model=bench.place.model(HALF), sampler=settings, learner=learner,
        **{**given, **changes},
    )  # fmt: skip


def microbatches(bench: Bench) -> Measures:
    """Cells a second, forward and backward, by how many go through at a time; up to the first that does not fit."""
    policy = bench.policy(HALF)
    time_ = float(policy.process.transitions(bench.settings(policy, noise=False)).times[0])
    for size in (1, 2) if bench.place.narrow else (1, 2, 4, 8, 16, 32, 64):
        work = one_pass(policy, size, time_)
        try:
            peak = f", {bench.peak(work):.1f} GiB" if bench.cuda else ""
            seconds = bench.seconds(work, warm_up=not bench.cuda)
        except torch.OutOfMemoryError:
            bench.free()
            yield Measure(f"microbatch of {size}", float("nan"), "cells/s", note="out of memory")
            return
        yield Measure(f"microbatch of {size}", size / seconds, "cells/s", note=f"forward and backward{peak}")


def one_pass(policy: Any, size: int, time_: float) -> Callable[[], None]:
    """Forward and backward of so many cells."""
    conditions = policy.encode(["one"] * size)
    latents = torch.randn(size, *policy.latent_shape, device=policy.device)
    times = torch.full((size,), time_, device=policy.device)

    def work() -> None:
        policy.output(latents, times, conditions, 1.0).square().mean().backward()

    return work


def attention(bench: Bench) -> Measures:
    """Forward and backward by each of torch's kernels for attention, and by those of diffusers where it takes them."""
    policy = bench.policy(HALF)
    time_ = float(policy.process.transitions(bench.settings(policy, noise=False)).times[0])
    work = one_pass(policy, bench.images, time_)
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
    own = bench.seconds(work)
    yield Measure("torch's own choice", bench.images / own, "cells/s")
    for kernel in kernels:
        try:
            with sdpa_kernel(kernel):
                seconds = bench.seconds(work)
        except RuntimeError as error:
            bench.free()
            yield Measure(kernel.name.lower(), float("nan"), "cells/s", note=str(error).splitlines()[0][:80])
            continue
        yield Measure(kernel.name.lower(), bench.images / seconds, "cells/s")


def compiled(bench: Bench) -> Measures:
    """`torch.compile` of the blocks that the network repeats: the first pass, and those that follow.

    Blocks of one kind share what is compiled, so that it takes a fraction of the time of the whole network's.
    """
    policy = bench.policy(HALF)
    time_ = float(policy.process.transitions(bench.settings(policy, noise=False)).times[0])
    work = one_pass(policy, bench.images, time_)
    before = bench.seconds(work)
    blocks = repeated_blocks(policy.network)
    for block in blocks:
        block.compile(backend=bench.backend)
    try:
        first = bench.seconds(work, 1, warm_up=False)
        after = bench.seconds(work)
    finally:
        for block in blocks:
            block._compiled_call_impl = None
    yield Measure("the first pass, with compilation", first, "s", note=f"{len(blocks)} blocks")
    yield Measure("time beside the network as it is", after / before, "x")
    saved = before - after
    passes = (first - after) / saved if saved > 0 else float("inf")
    yield Measure("passes until it has paid", passes, "", note=f"forward and backward of {bench.images} cells")


def protocol(bench: Bench) -> Measures:
    """A step of 48 prompts x 16 images, 10 steps, 512x512, 2 updates: measured on a part of it, and scaled up."""
    prompts, images, steps, updates = (2, 4, 2, 2) if bench.place.narrow else (48, 16, 10, 2)
    part = 1 if bench.place.narrow else 2
    policy = bench.policy(HALF)
    settings = bench.settings(policy, noise=False, steps=steps)
    learner = bench.learner(policy, settings, DENOISING)
    rollout = bench.rollout(policy, settings, learner, 1, 2)
    learner.update(rollout)
    bench.wait()
    begun = time.perf_counter()
    rollout = bench.rollout(policy, settings, learner, part, images)
    bench.wait()
    drawn = time.perf_counter()
    for _ in range(updates):
        learner.update(rollout)
    bench.wait()
    learned = time.perf_counter()
    scale = prompts / part
    step = scale * (learned - begun)
    note = f"{prompts} x {images} images, {updates} updates, unguided, PRDP on denoising errors, no reward; "
    note += f"from {part} of the prompts"
    yield Measure("a step", step, "s", note=note)
    yield Measure("of it drawing", scale * (drawn - begun), "s")
    yield Measure("samples per GPU-hour", prompts * images / step * 3600.0)


PARTS: dict[str, tuple[Callable[[Bench], Measures], float]] = {
    "numbers": (numbers, 60.0),
    "precision": (precision, 60.0),
    "speed": (speed, 90.0),
    "memory": (memory, 60.0),
    "protocol": (protocol, 90.0),
    "microbatches": (microbatches, 45.0),
    "attention": (attention, 45.0),
    "compile": (compiled, 120.0),
}
"""By name, in order: the part, and the seconds that it may take."""
ONLY = {"protocol": ("sd35_medium",)}
"""Parts of some models alone."""


def parts_of(name: str) -> list[str]:
    """Those of a model."""
    return [part for part in PARTS if name in ONLY.get(part, (name,))]
