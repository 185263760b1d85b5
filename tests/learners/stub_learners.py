"""Learners of the stub policy: knobs of every objective, and how they are built."""

from __future__ import annotations

from typing import Any

import torch
from stub_policy import SCHEDULER, StubPolicy

from prdp.config import LearnerConfig
from prdp.diffusion.variance_preserving import build_transitions
from prdp.learners import build_learner
from prdp.learners.learner import Learner

STEPS, DRAWS, SEED = 4, 3, 11
TRANSITIONS = build_transitions(SCHEDULER, steps=STEPS)
KNOBS: dict[str, dict[str, Any]] = {
    "prdp": {"beta": 0.5, "clip_range": 1e-2},
    "ddpo": {"clip_range": 1e-2, "min_count": 3},
    "reinforce": {"min_count": 3},
    "grpo": {"clip_range": 1e-2, "beta": 2.0},
    "tempflow_grpo": {"clip_range": 1e-2, "beta": 2.0},
    "grpo_guard": {"clip_range": 5e-3, "beta": 2.0},
    "flow_dppo": {"kl_threshold": 1e-3, "beta": 2.0},
    "rebel": {},
    "reward_weighted_regression": {"draws": DRAWS, "temperature": 0.02},
    "best_of_n": {"draws": DRAWS, "top": 2},
    "denoising": {"draws": DRAWS},
    "diffusion_dpo": {"draws": DRAWS, "beta": 3.0},
    "crd": {"draws": DRAWS, "beta": 2.0, "kl": 2.0, "kl_least": 0.5},
    "nft": {"draws": DRAWS, "kl": 2.0, "advantage_clip": 1.0},
    "fdfo": {},
    "awm": {"draws": DRAWS, "beta": 2.0, "clip_range": 1e-2},
    "dgpo": {"draws": DRAWS, "beta": 3.0, "kl": 2.0, "clip_range": 1e-2},
}
ON_DENOISING: dict[str, Any] = {"evidence": "denoising", "draws": DRAWS}
TERMS = {"first": 2.0, "second": -0.5}


def build(policy: StubPolicy, name: str, knobs: dict[str, Any] | None = None, **learner: Any) -> Learner:
    settings: dict[str, Any] = {"learning_rate": 1e-3, "max_grad_norm": float("inf"), "microbatch": 5, **learner}
    config = LearnerConfig(mode="full", **settings)
    objective = {"name": name, **KNOBS[name], **(knobs or {})}
    return build_learner(policy, TRANSITIONS, 1.0, config, objective, SEED, reward_terms=TERMS)


def moved(policy: StubPolicy) -> StubPolicy:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for value in policy.weights.parameters.values():
            value.add_(0.05 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return policy
