"""Numbers and memory of a model on the device, against what they have to be."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gpu_bench import DENOISING, FULL, HALF, TRAJECTORY, Bench, Measure, Measures, evidence_in
from gpu_times import one_pass

from prdp.config import SamplerConfig, TrainConfig
from prdp.configuration.memory_plan import device_plans
from prdp.diffusion.determinism import use_deterministic_kernels
from prdp.learners.learner import Learner
from prdp.types import Rollout


def numbers(bench: Bench) -> Measures:
    """Float32: the stored log-ratios against recomputed ones, and the gradient against one graph of all cells."""
    policy = bench.policy(FULL, bench.place.layout.small)
    settings = bench.settings(policy, noise=True, steps=3)
    learner = bench.learner(policy, settings, TRAJECTORY, microbatch=3)
    rollout = bench.rollout(bench.sampler(policy, settings, learner), 1, 2)
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
    rollout = bench.rollout(bench.sampler(policy, settings, learner), 1, 2)
    with widened(policy):
        full = gradient_of_one_graph(policy, learner, rollout)
    metrics = learner.update(rollout)
    yield Measure("noise of a log-ratio (evidence_noise)", metrics["evidence_noise"], bound=1e-4, note="a usual clip")
    yield Measure("log-ratio, stored against recomputed", metrics["ratio_error"], bound=1e-4)
    half = flat_gradient(policy)
    yield Measure("gradient in bfloat16 against float32, 1 - cosine", apart(half, full), bound=0.05)


def evidence(bench: Bench) -> Measures:
    """Log-ratios in true size, of denoising errors and of trajectories, in less than float32: errors and time."""
    yield from _less_than_float32(bench, "noised copies", DENOISING, "denoising", "tf32", HALF)
    # Of which half precision is refused.
    yield from _less_than_float32(bench, "trajectories", TRAJECTORY, "log_ratio", "tf32")


def _less_than_float32(bench: Bench, kind: str, objective: dict[str, Any], channel: str, *ways: str) -> Measures:
    policy = bench.policy(HALF)
    settings = bench.settings(policy, noise=objective is TRAJECTORY, steps=3)
    learner = bench.learner(policy, settings, objective)
    rollout = bench.rollout(bench.sampler(policy, settings, learner), 1, 2)
    engine, cells = learner.engine, np.arange(np.prod(learner.cells(rollout)))
    batch = engine.batch(rollout, 1)

    def log_ratio() -> np.ndarray:
        found = engine.evidence(batch, cells, channels=(channel,))[channel]
        if channel == "denoising":
            found = found - engine.evidence(batch, cells, of="reference", channels=(channel,))[channel]
        return found

    expected, full = log_ratio(), bench.seconds(log_ratio, warm_up=False)
    yield Measure(f"{kind}: log-ratio, root mean square", rms(expected), note=f"{len(cells)} cells")
    for way in ways:
        with evidence_in(way, policy, learner):
            error, seconds = log_ratio() - expected, bench.seconds(log_ratio, warm_up=False)
        yield Measure(f"{kind}: error in {way}, root mean square", rms(error))
        yield Measure(f"{kind}: time in {way} beside float32", seconds / full, "x")


def rms(values: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.square(values).mean()))


def repeated(bench: Bench) -> Measures:
    """Whether a gradient has the same bits again, as it is and with deterministic kernels, and what these take."""
    policy = bench.policy(HALF)
    time_ = float(policy.process.transitions(bench.settings(policy, noise=False)).times[0])
    work = one_pass(policy, bench.images, time_)

    def differing() -> float:
        gradients = []
        for _ in range(2):
            for value in policy.weights.parameters.values():
                value.grad = None
            work()
            gradients.append(flat_gradient(policy))
        return float((gradients[0] != gradients[1]).float().mean())

    yield Measure("entries of a gradient that differ the next time", differing(), "of all")
    before = bench.seconds(work)
    use_deterministic_kernels()
    try:
        yield Measure("the same with model.deterministic", differing(), "of all", 0.0)
        yield Measure("its time beside", bench.seconds(work) / before, "x", note="forward and backward")
    finally:
        torch.use_deterministic_algorithms(False)


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
    sampler, drawn = bench.sampler(policy, settings, learner), []

    def compared(part: str, work: Callable[[], Any]) -> Measures:
        measured = bench.peak(work)
        yield Measure(f"measured, {part}", measured, "GiB")
        yield Measure(f"measured over planned, {part}", measured / planned[part.split()[0]], "x", 1.1)

    yield from compared("drawing", lambda: drawn.append(bench.rollout(sampler, 1, bench.images)))
    for way in (HALF, "tf32", FULL):
        with evidence_in(way, policy, learner):
            yield from compared(f"learning with evidence in {way}", lambda: learner.update(drawn[0]))
        bench.warm.add(way)


def workspace(bench: Bench) -> Measures:
    """Learning with evidence in float32 where cuDNN's workspaces are bounded, beside `memory` and `speed`."""
    policy = bench.policy(HALF)
    settings = bench.settings(policy, noise=False)
    learner = bench.learner(policy, settings, DENOISING)
    rollout = bench.rollout(bench.sampler(policy, settings, learner), 1, bench.images)
    note = f"CUDNN_CONV_WSCAP_DBG={os.environ.get('CUDNN_CONV_WSCAP_DBG')}"
    with evidence_in(FULL, policy, learner):
        if bench.cuda:
            peak = bench.peak(lambda: learner.update(rollout))
            yield Measure("measured, learning with evidence in float32", peak, "GiB", note=note)
        seconds = bench.seconds(lambda: learner.update(rollout), warm_up=not bench.cuda)
    yield Measure("images learned from, evidence in float32", bench.images / seconds, "images/s", note=note)


def run_config(bench: Bench, settings: SamplerConfig, **changes: Any) -> TrainConfig:
    """A run of these sizes, for its plans."""
    learner = bench.place.learner(microbatch=bench.images)
    given = {"prompts_per_epoch": 1, "images_per_prompt": bench.images, "objective": DENOISING}
    return TrainConfig(
        output_dir="x", reward={"_target_": "x"}, model=bench.place.model(HALF), sampler=settings, learner=learner,
        **{**given, **changes},
    )  # fmt: skip
