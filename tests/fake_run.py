"""A run of `prdp train` whose network is one number: loop, folder, checkpoints and logs are the real ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prdp import run_parts, train
from prdp.config import SamplerConfig, TrainConfig
from prdp.configuration.typed import typed
from prdp.support.interruption import uninterrupted
from prdp.support.staged import StagedWhole
from prdp.train import Run
from prdp.types import PromptBatch, Rollout, Weights


class FakePolicy:
    """Weights to bind and to export."""

    process = SimpleNamespace(transitions=lambda _: None)

    def __init__(self) -> None:
        self.weights, self.scheduler_config = self, {}

    def bind(self, weights: Weights) -> None:
        self.bound = weights

    def usage(self, *_: Any) -> str:
        return "as you like"

    def save(self, folder: Path) -> None:
        (folder / "weights.bin").write_bytes(self.bound.tensors["w"].tobytes())


class FakeLearner:
    """Adds up what it is rewarded with; see `prdp.learners.learner.Learner`."""

    recorder = None

    def __init__(self, *_: Any) -> None:
        self.version, self.value = 0, np.zeros(1, np.float32)

    def let_go(self) -> None:
        pass

    def cells(self, rollout: Rollout) -> tuple[int, int]:
        return len(rollout), 1

    def check(self, rollout: Rollout, sampler: SamplerConfig) -> None:
        """Nothing is kept of the chains."""

    def weights(self) -> Weights:
        return Weights.of(self.version, {"w": self.value.copy()})

    evaluation_weights = weights

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return {"weights/w": self.value.copy()}, {"updates": self.version}

    def stage(self) -> tuple[StagedWhole, dict[str, np.ndarray], dict[str, Any]]:
        tensors, scalars = self.state()
        return StagedWhole(tensors), {}, scalars

    def load_state(self, tensors: Mapping[str, np.ndarray], scalars: Mapping[str, Any]) -> None:
        self.value, self.version = tensors["weights/w"].copy(), int(scalars["updates"])

    def update(self, rollout: Rollout, progress: Callable[[int], None], stepped: Callable[[Any], None]) -> None:
        assert rollout.rewards is not None
        gradient = np.float32(rollout.rewards.sum())
        progress(len(rollout))
        with uninterrupted():
            self.value = self.value + gradient / np.float32(self.version + 1)
            self.version += 1
            stepped({"loss": float(self.value[0]), "ratio_error": 0.0, "time/learn": 1e-3})


class FakeWorkforce:
    """Samples at once; rewards tell the weights and the prompts that they were made with."""

    reward_identity: Mapping[str, Any] = {"name": "fake", "version": "1"}
    plan = "nobody"

    def __init__(self, *_: Any) -> None:
        self.published = Weights.of(0, {"w": np.zeros(1, np.float32)})

    def status(self) -> dict[str, Any]:
        return {}

    def export_metrics(self, *_: Any) -> None:
        pass

    def close(self) -> None:
        pass

    def release(self, rollout: Rollout) -> None:
        rollout.images[:] = 0

    def reading(self, rollout: Rollout, work: Callable[[Rollout], None]) -> Rollout:
        work(rollout)
        return rollout

    def storage(self) -> dict[str, float]:
        return {}

    def publish(self, weights: Weights) -> None:
        self.published = weights

    def submit(self, prompts: PromptBatch, *, images_per_prompt: int, seed: int) -> Any:
        rollout = self.sample(prompts, images_per_prompt=images_per_prompt, seed=seed)

        class Done:
            def result(self, on_chunk: Callable[[Rollout], None]) -> Rollout:
                on_chunk(rollout)
                return rollout

        return Done()

    def sample(self, prompts: PromptBatch, *, images_per_prompt: int, seed: int, **_: Any) -> Rollout:
        count = len(prompts) * images_per_prompt
        numbers = np.repeat([len(text) for text in prompts.texts], images_per_prompt) + np.arange(count) * seed
        images = np.broadcast_to((numbers % 250).astype(np.uint8)[:, None, None, None], (count, 2, 2, 3)).copy()
        version = self.published.version
        rewards = numbers / 100.0 + float(self.published.tensors["w"][0]) * 0.1
        seconds = {"rollout": 1e-3, "sampling": 1e-3, "score": 1e-3}
        return Rollout(prompts, images_per_prompt, images, version, "", rewards=rewards, seconds=seconds)


def fake_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `Run` be built of these."""
    monkeypatch.setattr(run_parts, "learner_policy", lambda *_, **__: FakePolicy())
    monkeypatch.setattr(run_parts, "learner_of", FakeLearner)
    monkeypatch.setattr(run_parts, "build_workforce", FakeWorkforce)
    monkeypatch.setattr(train, "cut_prompts_report", lambda *_: "")
    monkeypatch.setattr("os.fsync", lambda _: None)


@cache
def _config() -> TrainConfig:
    shapes = {"_target_": "prdp.worlds.shapes.prompts.ShapesPrompts", "size": 7}
    config: TrainConfig = typed(
        {
            "seed": 3,
            "epochs": 3,
            "prompts_per_epoch": 3,
            "images_per_prompt": 2,
            "updates_per_epoch": 2,
            "output_dir": "none",
            "model": {"path": "none"},
            "reward": {"_target_": "prdp.rewards.redness.Redness"},
            "prompts": {"train": {**shapes, "split": "train"}, "heldout": {**shapes, "split": "heldout", "size": 4}},
            "evaluation": {"every": 1, "prompts": 2, "images_per_prompt": 1, "final_prompts": 2, "grid_prompts": 1},
            "tracking": {"console": False, "report": False},
            "checkpoint": {"every": 10, "keep": 10},
        }
    )
    return config


def fake_run(folder: Path, **changes: Any) -> Run:
    """A run of 3 epochs of 2 updates, evaluated after each, that saves nothing on the way.

    Args:
        folder: of the run.
        changes: keys and values; of sections, those to change.
    """
    config = copy.deepcopy(_config())
    config.output_dir = str(folder)
    for key, value in changes.items():
        if isinstance(value, dict):
            for name, inner in value.items():
                setattr(getattr(config, key), name, inner)
        else:
            setattr(config, key, value)
    return Run(config)
