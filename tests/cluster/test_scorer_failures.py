"""Scorers that fail or hang in mid-run, or come back as another version: the finished epochs are never lost."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prdp.checkpoints.checkpoint import load_checkpoint
from prdp.cluster.base import ClusterError
from prdp.config import TrainConfig
from prdp.configuration.typed import typed
from prdp.support.errors import UserError
from prdp.tracking.evaluations import list_evaluations
from prdp.tracking.jsonl import read_metrics
from prdp.train import Run, main

PROMPTS = "prdp.worlds.mixtures.prompts.GaussianMixturePrompts"
MODULE = """\
import os, select
from pathlib import Path
import numpy as np

class Moody:
    name = "moody"

    def __init__(self, folder):
        self.folder = Path(folder)
        self.version = (self.folder / "version").read_text()

    def score(self, images, prompts, metadata):
        if (self.folder / "raise").exists():
            raise OSError("the scorer is gone")
        if (self.folder / "hang").exists():
            select.select([os.open(self.folder / "silent", os.O_RDWR)], [], [], 600)
        return images.mean((1, 2, 3)) / 255
"""


@pytest.fixture(scope="module")
def mood(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that the reward looks into before it answers."""
    folder = tmp_path_factory.mktemp("mood")
    (folder / "moody_reward.py").write_text(MODULE)
    (folder / "version").write_text("1")
    os.mkfifo(folder / "silent")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory, mood: Path) -> Callable[..., TrainConfig]:
    """A configuration of three epochs, in a folder of the given name, that saves nothing before its end."""

    runs = tmp_path_factory.mktemp("runs")

    def make(name: str, **changes: Any) -> TrainConfig:
        return typed(
            {
                "epochs": 3,
                "prompts_per_epoch": 2,
                "images_per_prompt": 2,
                "output_dir": str(runs / name),
                "model": {"family": "gaussian_mixtures", "path": "gaussian_mixtures"},
                "sampler": {"steps": 2, "guidance_scale": 1.0, "prompts_per_chunk": 1},
                "reward": {"_target_": "moody_reward.Moody", "folder": str(mood)},
                "prompts": {
                    "train": {"_target_": PROMPTS, "split": "train", "size": 7},
                    "heldout": {"_target_": PROMPTS, "split": "heldout", "size": 2},
                },
                "learner": {"mode": "full", "learning_rate": 1e-2},
                "evaluation": {"every": 2, "prompts": 1, "images_per_prompt": 1, "final_prompts": 1, "grid_prompts": 1},
                "tracking": {"console": False, "report": False},
                "checkpoint": {"every": 100},
                **changes,
            }
        )

    return make


@pytest.fixture(scope="module")
def straight(configured: Callable[..., TrainConfig]) -> TrainConfig:
    """A run that was never disturbed."""
    config = configured("straight")
    main(config)
    return config


def failing(config: TrainConfig, mood: Path, fault: str, epoch: int, evaluating: bool = False) -> BaseException:
    """Run until the scorer shows the fault, from sampling in `epoch` on or at the evaluation after it; the error."""
    run = Run(config)
    draw, note = run.stream.next, run.log._prompt_log.write

    def strike(due: bool) -> None:
        if due:
            (mood / fault).touch()

    def next_prompts(count: int, now: int) -> Any:
        strike(now == epoch and not evaluating)
        return draw(count, now)

    def write(finished: int, indices: Any) -> None:
        note(finished, indices)
        strike(finished == epoch + 1 and evaluating)

    run.stream.next, run.log._prompt_log.write = next_prompts, write  # type: ignore[method-assign]
    try:
        with pytest.raises(Exception) as caught:
            run.train()
    finally:
        run.close()
        (mood / fault).unlink()
    return caught.value


def final_state(folder: str) -> dict[str, np.ndarray]:
    return load_checkpoint(Path(folder) / "checkpoints" / "epoch_00003").tensors


def assert_same_run(left: TrainConfig, right: TrainConfig) -> None:
    """Same weights, same lines in the log and same evaluations."""
    one, two = final_state(left.output_dir), final_state(right.output_dir)
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)
    folders = Path(left.output_dir), Path(right.output_dir)
    logs = [[line for line in read_metrics(folder) if "reward/mean" in line] for folder in folders]
    rewards = [{line["epoch"]: line["reward/mean"] for line in log} for log in logs]
    assert rewards[0] == rewards[1]
    assert list_evaluations(folders[0]) == list_evaluations(folders[1]) == [0, 2, 3]


@pytest.mark.parametrize("evaluating", [False, True])
def test_a_scorer_that_fails_leaves_a_run_that_resumes_on_the_same_curve(
    configured: Callable[..., TrainConfig], straight: TrainConfig, mood: Path, evaluating: bool
) -> None:
    name = f"evaluating_{evaluating}"
    broken = configured(name)
    error = failing(broken, mood, "raise", epoch=1, evaluating=evaluating)
    kept = 2 if evaluating else 1
    assert "reward 'moody' (epoch " in str(error)
    assert "OSError: the scorer is gone" in str(error)
    assert f"{kept} finished epochs are kept" in error.__notes__[-1]
    assert load_checkpoint(Path(broken.output_dir) / "checkpoints" / f"epoch_0000{kept}").epoch == kept
    main(configured(name, checkpoint={"every": 100, "resume": "auto"}))
    assert_same_run(straight, broken)


def test_a_scorer_that_hangs_is_given_up_and_the_run_resumes_on_the_same_curve(
    configured: Callable[..., TrainConfig], straight: TrainConfig, mood: Path, private_ray: Any
) -> None:
    cluster = {"kind": "ray", "samplers": 1, "retries": 1, "reward_timeout_seconds": 1.0}
    broken = configured("hanging", cluster=cluster)
    error = failing(broken, mood, "hang", epoch=1)
    assert isinstance(error, ClusterError)
    assert "reward actor 0 hung on this chunk, attempt 2 of 2 (cluster.retries=1)" in str(error)
    assert "1 finished epochs are kept" in error.__notes__[-1]
    main(configured("hanging", checkpoint={"every": 100, "resume": "auto"}))
    assert_same_run(straight, broken)


def test_name_and_version_are_logged_and_another_version_is_refused(
    configured: Callable[..., TrainConfig], mood: Path
) -> None:
    config = configured("run", epochs=1)
    main(config)
    folder = Path(config.output_dir)
    identity = {"name": "moody", "version": "1"}
    assert read_metrics(folder)[0]["reward_identity"] == identity
    assert load_checkpoint(folder / "checkpoints" / "epoch_00001").state["reward"] == identity
    try:
        (mood / "version").write_text("2")
        with pytest.raises(UserError, match="'moody' version '1' in the checkpoint, 'moody' version '2' now"):
            main(configured("run", checkpoint={"resume": "auto"}))
    finally:
        (mood / "version").write_text("1")
