"""The composite: required trackers stop a run, optional ones never do."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from synthetic_run import add_evaluation

from prdp.config import TrackingConfig
from prdp.tracking import tensorboard_tracker, wandb_tracker
from prdp.tracking.base import Trackers, build_trackers
from prdp.tracking.evaluations import list_evaluations
from prdp.tracking.jsonl import read_metrics
from prdp.tracking.status_file import read_status
from prdp.types import Float64, UInt8

IMAGES = np.zeros((2, 4, 4, 3), np.uint8)


class Recorder:
    """Remembers its calls; fails from the given epoch on."""

    def __init__(self, fails_from: int | None = None) -> None:
        self.calls: list[object] = []
        self.fails_from = fails_from

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        if self.fails_from is not None and epoch >= self.fails_from:
            raise RuntimeError("no route to host")
        self.calls.append((dict(metrics), epoch))

    def images(self, name: str, images: UInt8, captions: Sequence[str], epoch: int) -> None:
        self.calls.append((name, len(images), epoch))

    def histogram(self, name: str, values: Float64, epoch: int) -> None:
        self.calls.append((name, values.tolist(), epoch))

    def finish(self, status: str) -> None:
        self.calls.append(status)


def test_everything_reaches_every_tracker_and_finish_happens_once() -> None:
    required, optional = Recorder(), Recorder()
    trackers = Trackers([required], {"W&B": optional})
    trackers.log({"loss": 1.0}, 0)
    trackers.images("eval/grid", IMAGES, ["a", "b"], 0)
    trackers.histogram("training/rewards", np.array([0.5, np.nan, 1.0]), 0)
    trackers.histogram("training/rewards", np.array([np.inf]), 1)
    trackers.finish()
    trackers.finish("failed")
    told = [({"loss": 1.0}, 0), ("eval/grid", 2, 0), ("training/rewards", [0.5, 1.0], 0), "finished"]
    assert required.calls == optional.calls == told


def test_an_optional_tracker_that_fails_is_named_once_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    required, optional, other = Recorder(), Recorder(fails_from=1), Recorder()
    trackers = Trackers([required], {"W&B": optional, "TensorBoard": other})
    with caplog.at_level(logging.WARNING):
        for epoch in range(4):
            trackers.log({"loss": 1.0}, epoch)
    assert len(required.calls) == len(other.calls) == 4 and len(optional.calls) == 1
    (record,) = caplog.records
    assert "W&B failed" in record.getMessage() and "no route to host" in record.getMessage()
    assert trackers.active == ("TensorBoard",)


def test_a_required_tracker_that_fails_stops_the_run_after_the_others_heard() -> None:
    optional = Recorder()
    with pytest.raises(RuntimeError, match="no route"):
        Trackers([Recorder(fails_from=0)], {"W&B": optional}).log({"loss": 1.0}, 0)
    assert len(optional.calls) == 1


@pytest.mark.parametrize(
    ("error", "status"), [(None, "finished"), (KeyboardInterrupt, "interrupted"), (ValueError, "failed")]
)
def test_the_context_tells_how_the_run_ended(error: type[BaseException] | None, status: str) -> None:
    required = Recorder()
    if error is None:
        with Trackers([required]):
            pass
    else:
        with pytest.raises(error), Trackers([required]):
            raise error
    assert required.calls == [status]


def test_an_error_is_not_hidden_by_a_log_that_cannot_be_closed(caplog: pytest.LogCaptureFixture) -> None:
    class Full(Recorder):
        def finish(self, status: str) -> None:
            raise OSError("no space left")

    with pytest.raises(ValueError, match="the real one"), Trackers([Full()]):
        raise ValueError("the real one")
    assert "no space left" in caplog.text


@pytest.mark.parametrize(
    ("images", "captions", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), ["a", "b"], "float32"),
        (np.zeros((4, 4, 3), np.uint8), ["a"], r"\(4, 4, 3\)"),
        (IMAGES, ["a"], "2 images but 1 captions"),
    ],
)
def test_images_are_checked(images: UInt8, captions: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trackers([]).images("eval/grid", images, captions, 0)


def test_by_default_there_is_the_log_alone(tmp_path: Path) -> None:
    with build_trackers(TrackingConfig(), tmp_path, {}, "abc") as trackers:
        trackers.log({"loss": 1.0}, 0)
        assert trackers.active == ()
    assert read_metrics(tmp_path)[0]["loss"] == 1.0 and read_status(tmp_path)["status"] == "finished"


def test_an_unknown_mode_is_an_error_that_lists_the_modes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tracking.wandb is 'on', expected one of: disabled, offline, online, auto"):
        build_trackers(TrackingConfig(wandb="on"), tmp_path, {}, "abc")


def test_a_tracker_that_is_not_installed_is_an_error_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorboard_tracker.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install prdp\[tensorboard\]"):
        build_trackers(TrackingConfig(tensorboard=True), tmp_path, {}, "abc")
    monkeypatch.delenv("WANDB_MODE")
    with pytest.raises(ModuleNotFoundError, match="W&B, which is not installed"):
        build_trackers(TrackingConfig(wandb="offline"), tmp_path, {}, "abc")


def test_a_tracker_that_cannot_start_is_named_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("server on fire")

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(wandb_tracker, "WandbTracker", broken)
    trackers = build_trackers(TrackingConfig(wandb="offline"), tmp_path, {}, "abc")
    trackers.finish()
    assert trackers.active == () and "W&B could not start" in caplog.text and "server on fire" in caplog.text


def test_evaluations_of_weights_that_are_gone_go_too(tmp_path: Path) -> None:
    for epoch in (0, 10, 20):
        add_evaluation(tmp_path, epoch, 0.0, prompts=2, grid=1)
    build_trackers(TrackingConfig(), tmp_path, {}, "abc", resumed_epoch=10).finish()
    assert list_evaluations(tmp_path) == [0, 10]
    build_trackers(TrackingConfig(), tmp_path, {}, "abc").finish()
    assert list_evaluations(tmp_path) == []
    assert sorted(entry.name for entry in (tmp_path / "evaluations.1").iterdir()) == ["epoch_00000", "epoch_00010"]
