"""A model on the device, and what `gpu.py` measures it with."""

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
from gpu_models import Place

from prdp.config import SamplerConfig
from prdp.diffusion.rectified_flow import RectifiedFlow
from prdp.diffusion.sampler import Sampler
from prdp.learners import build_learner
from prdp.learners.learner import Learner
from prdp.types import PromptBatch, Rollout, Weights

DENOISING = {"name": "prdp", "evidence": "denoising", "beta": 1e-3, "clip_range": None, "draws": 2}
"""The default method: no trajectories, so that pictures are drawn in the precision of the network."""
TRAJECTORY = {"name": "prdp", "evidence": "trajectory", "beta": 1.0, "clip_range": None}
HALF, FULL = "bfloat16", "float32"
_LONG = 1.0
"""Seconds after which nothing is repeated: what takes so long varies little."""


GROUP = 4
"""Images of a prompt."""


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


@contextmanager
def evidence_in(way: str, policy: Any, learner: Learner) -> Iterator[None]:
    """As `learner.evidence_precision` would have it from the start."""
    engine: Any = learner.engine
    before, policy._tf32, engine.evidence_precision = engine.evidence_precision, way == "tf32", way
    try:
        yield
    finally:
        policy._tf32, engine.evidence_precision = False, before


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
        self.warm: set[str] = set()
        """Precisions of evidence whose kernels have been loaded."""

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

    def answers(self) -> bool:
        """Whether the device does; after some errors it does not until the process ends."""
        try:
            torch.zeros(1, device=self.device).item()
        except RuntimeError as error:
            return isinstance(error, torch.OutOfMemoryError)
        return True

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

    def sampler(self, policy: Any, settings: SamplerConfig, learner: Learner) -> Sampler:
        """One that has learned once, for it too."""
        sampler = Sampler(policy, settings, recorder=learner.recorder)
        sampler.load_weights(Weights.of(1, policy.weights.export(0).tensors))
        return sampler

    def rollout(self, sampler: Sampler, prompts: int, images: int) -> Rollout:
        """Drawn, and scored at random."""
        texts = tuple(f"a prompt of number {number}" for number in range(prompts))
        drawn = sampler.sample(PromptBatch(0, 0, texts, ({},) * prompts), images, 0)
        return drawn.scored(np.random.default_rng(0).random(len(drawn)), {})

    def seconds(self, work: Callable[[], Any], repeats: int | None = None, warm_up: bool = True) -> float:
        """Median wall time, the device idle before and after. The first time kernels are loaded, and does not count."""
        found: list[float] = []
        wanted = self.repeats if repeats is None else repeats
        if warm_up:
            self._once(work)
        while len(found) < wanted and sum(found) < _LONG:
            found.append(self._once(work))
        return median(found)

    def _once(self, work: Callable[[], Any]) -> float:
        self.wait()
        begun = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - begun

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
