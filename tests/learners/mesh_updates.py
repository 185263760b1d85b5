"""Updates of the JAX learner on meshes of eight devices: python mesh_updates.py PIPELINE OUT."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_policy, build_sampler
from prdp.learners import build_learner
from prdp.learners.learner import Learner
from prdp.support.errors import StartError
from prdp.types import PromptBatch, Rollout

SAMPLER = SamplerConfig(steps=2, guidance_scale=1.0, timestep_spacing="trailing")
MESHES = {"lora": ((1, 1), (2, 4))}
"""Programs for more take a minute each to compile: {"full": ((1, 1), (8, 1), (1, 8))} for instance."""


def built(model: ModelConfig, mode: str, **changes: Any) -> Learner:
    config = LearnerConfig(
        mode=mode, lora_rank=4, learning_rate=1e-3, weight_decay=0.1, max_grad_norm=0.5, ema_decay=0.9, microbatch=6,
        **changes,
    )  # fmt: skip
    policy = build_policy(model, config, seed=0, keep_reference=False)
    objective = {"name": "prdp", "evidence": "denoising", "beta": 1.0, "clip_range": None, "draws": 2, "kl": 0.2}
    return build_learner(policy, policy.process.transitions(SAMPLER), 1.0, config, objective)


def updated(
    model: ModelConfig, mesh: tuple[int, int], mode: str, rollout: Rollout
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What three updates come to, with a save before the last, and the state after them."""
    learner = built(model, mode, framework="jax", jax_data=mesh[0], jax_fsdp=mesh[1])
    metrics = [learner.update(rollout) for _ in range(2)]
    learner.load_state(*learner.state())  # tensors have to come back to where they belong
    metrics.append(learner.update(rollout))
    engine: Any = learner.engine
    held: dict[int, int] = {}
    trees = (engine._state.tensors, engine._state.adam.mu, engine._state.average, engine._network.frozen)
    for leaf in jax.tree.leaves(trees):
        for shard in leaf.addressable_shards:
            held[shard.device.id] = held.get(shard.device.id, 0) + shard.data.nbytes
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(trees))
    told = {"loss": [one["loss"] for one in metrics], "grad_norm": [one["grad_norm"] for one in metrics]}
    return {**told, "held": sorted(held.values()), "whole": whole}, learner.state()[0]


def main(pipeline: str, out: str) -> None:
    torch.set_num_threads(1)
    model = ModelConfig(path=pipeline, device="cpu")
    recorder = built(model, "lora").recorder
    sampler = build_sampler(model, LearnerConfig(lora_rank=4), SAMPLER, seed=0, recorder=recorder)
    rollout = sampler.sample(PromptBatch(0, 0, ("a small red circle", "two stars"), ({}, {})), 3, seed=3)
    rollout = rollout.scored(np.random.default_rng(0).normal(size=6), {})
    found: dict[str, Any] = {}
    for mode, meshes in MESHES.items():
        first: dict[str, Any] = {}
        for mesh in meshes:
            told, tensors = updated(model, mesh, mode, rollout)
            first = first or tensors
            told["apart"] = max(float(np.abs(tensors[name] - first[name]).max()) for name in first)
            found[f"{mode} {mesh[0]}x{mesh[1]}"] = told
    try:
        updated(model, (3, 3), "lora", rollout)
    except StartError as error:
        found["refused"] = str(error)
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
