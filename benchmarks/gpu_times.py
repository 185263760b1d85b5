"""Times of a model on the device: of pictures, updates, attention, compilation, and a step of a usual run."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from gpu_bench import DENOISING, FULL, GROUP, HALF, TRAJECTORY, Bench, Measure, Measures, evidence_in
from gpu_models import prompt_arguments
from torch.nn.attention import SDPBackend, sdpa_kernel

from prdp.diffusion.precision import repeated_blocks
from prdp.types import Rollout


def speed(bench: Bench) -> Measures:
    """In bfloat16: pictures and updates a second, beside diffusers' own loop and the bare passes of the same work."""
    policy = bench.policy(HALF)
    settings = bench.settings(policy, noise=False)
    learner = bench.learner(policy, settings, DENOISING)
    sampler = bench.sampler(policy, settings, learner)
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
        return bench.rollout(sampler, count // GROUP, GROUP)

    ours = bench.seconds(drawing)
    yield Measure("pictures drawn", count / ours, "images/s", note=f"{count} at a time, {bench.steps} steps, unguided")
    yield Measure("time beside the bare passes and decoding", ours / bench.seconds(bare_drawing), "x")
    yield Measure("time beside diffusers' pipeline", ours / bench.seconds(diffusers_loop), "x")

    rollout, draws = drawing(), int(DENOISING["draws"])
    learner.engine.use_microbatch(GROUP * draws)
    cells = GROUP * draws
    conditions = policy.encode(["one"] * cells)
    latents = torch.randn(cells, *policy.latent_shape, device=policy.device)
    times = torch.full((cells,), float(table.times[0]), device=policy.device)
    parts = range(count // GROUP)

    def bare_evidence(way: str) -> None:
        """Of the reference; and of the policy, which the pass with gradient tells in half precision."""
        with torch.no_grad(), nullcontext() if way == HALF else policy.float32():
            for _ in parts:
                with policy.reference() as network:
                    policy.output(latents, times, conditions, 1.0, network)
                if way != HALF:
                    policy.output(latents, times, conditions, 1.0)

    def bare_gradient() -> None:
        for _ in parts:
            policy.output(latents, times, conditions, 1.0).square().mean().backward()

    note = f"{draws} noised copies of each, {cells} cells at a time"
    gradient = bench.seconds(bare_gradient)
    for way in (HALF, "tf32", FULL):
        with evidence_in(way, policy, learner):
            # In less than float32 the first update of a rollout measures noise, too.
            learned = bench.seconds(lambda: learner.update(rollout), warm_up=way != FULL or way not in bench.warm)
            yield Measure(f"images learned from, evidence in {way}", count / learned, "images/s", note=note)
            if way == "tf32":
                continue
            evidence = bench.seconds(partial(bare_evidence, way), warm_up=False)
        beside = f"evidence in {way}: "
        yield Measure(f"{beside}time of an update beside its bare passes", learned / (evidence + gradient), "x")
        yield Measure(f"{beside}share of it in these", evidence / (evidence + gradient), "of the time")

    noisy = bench.settings(policy, noise=True)
    noisy_sampler = bench.sampler(policy, noisy, bench.learner(policy, noisy, TRAJECTORY))
    few = max(count // 4, 1)
    seconds = bench.seconds(lambda: bench.rollout(noisy_sampler, 1, few), 1, warm_up=False)
    note = f"{few} at a time, policy and reference in float32"
    yield Measure("pictures drawn with trajectories", few / seconds, "images/s", note=note)


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
    part = 1
    policy = bench.policy(HALF)
    settings = bench.settings(policy, noise=False, steps=steps)
    learner = bench.learner(policy, settings, DENOISING)
    sampler = bench.sampler(policy, settings, learner)
    learner.engine.use_microbatch(images * int(DENOISING["draws"]) if bench.place.narrow else 32)
    learner.update(bench.rollout(sampler, 1, 2))
    bench.wait()
    begun = time.perf_counter()
    rollout = bench.rollout(sampler, part, images)
    bench.wait()
    drawn = time.perf_counter() - begun
    scale, note = prompts / part, f"from {part} of the prompts"
    yield Measure("drawing, of a step", scale * drawn, "s", note=note)
    for way in (HALF, FULL):
        with evidence_in(way, policy, learner):
            # In half precision the first update of a rollout measures noise: on as many cells as these, of all.
            update = bench.seconds(lambda: learner.update(rollout), 1, warm_up=way == HALF or way not in bench.warm)
        step = scale * (drawn + updates * update)
        note = f"{prompts} x {images} images, {updates} updates, unguided, PRDP on denoising errors, no reward"
        yield Measure(f"a step, evidence in {way}", step, "s", note=note)
        yield Measure(f"samples per GPU-hour, evidence in {way}", prompts * images / step * 3600.0)
