"""What a tracker is, and the composite that the training loop talks to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from prdp.types import Float64, UInt8

if TYPE_CHECKING:
    from prdp.config import TrackingConfig

log = logging.getLogger(__name__)

LEAST_SIDE = 8
"""Pixels of a picture that is worth showing; smaller ones encode points."""


class Tracker(Protocol):
    """Something that records a run."""

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Record numbers after `epoch` finished epochs; more calls for one epoch bring other names."""
        ...

    def images(self, name: str, images: UInt8, captions: Sequence[str], epoch: int) -> None:
        """Record uint8 images [n, H, W, 3] with one caption each, under a name such as 'eval/grid'."""
        ...

    def histogram(self, name: str, values: Float64, epoch: int) -> None:
        """Record how numbers [n] are spread, under a name such as 'reward/values'."""
        ...

    def finish(self, status: str) -> None:
        """Flush and close. status: 'finished', 'interrupted' or 'failed'."""
        ...


class Trackers:
    """Fans out to all trackers of a run.

    A required tracker's error stops the run. An optional one that fails is named in a warning, once, and left out from
    then on: a broken dashboard must not cost a night of training.

    As a context manager it finishes with 'finished', 'interrupted' (Ctrl-C, SIGTERM) or 'failed'.
    """

    def __init__(self, required: Sequence[Tracker], optional: Mapping[str, Tracker] | None = None) -> None:
        self._required = list(required)
        self._optional = dict(optional or {})
        self._finished = False

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the optional trackers still at work."""
        return tuple(self._optional)

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Record metrics of an epoch everywhere. Raises what a required tracker raises, e.g. OSError on a full disk."""
        self._each(lambda tracker: tracker.log(metrics, epoch))

    def images(self, name: str, images: UInt8, captions: Sequence[str], epoch: int) -> None:
        """Record images everywhere.

        Raises:
            ValueError: `images` is not uint8 [n, H, W, 3], or there is not one caption per image.
        """
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != "uint8":
            raise ValueError(f"images '{name}' are {images.dtype} {images.shape}, expected uint8 [n, H, W, 3]")
        if len(captions) != len(images):
            raise ValueError(f"images '{name}': {len(images)} images but {len(captions)} captions")
        self._each(lambda tracker: tracker.images(name, images, captions, epoch))

    def histogram(self, name: str, values: Float64, epoch: int) -> None:
        """Record how the finite ones of the numbers [n] are spread, everywhere; nothing where there are none."""
        finite = values[np.isfinite(values)]
        if len(finite):
            self._each(lambda tracker: tracker.histogram(name, finite, epoch))

    def finish(self, status: str = "finished") -> None:
        """Close all trackers; later calls do nothing."""
        if not self._finished:
            self._finished = True
            self._each(lambda tracker: tracker.finish(status))

    def _each(self, action: Callable[[Tracker], None]) -> None:
        try:
            for tracker in self._required:
                action(tracker)
        finally:
            self._each_optional(action)

    def _each_optional(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._optional.items()):
            try:
                action(tracker)
            except Exception as error:  # noqa: BLE001 - other people's code may raise anything
                del self._optional[name]
                log.warning("%s failed and is left out from now on: %s: %s", name, type(error).__name__, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish("finished")
            return
        try:
            self.finish("failed" if issubclass(kind, (Exception, SystemExit)) else "interrupted")
        except OSError as second:
            log.warning("the log could not be closed: %s", second)  # the error on its way matters more


def check_trackers(config: TrackingConfig) -> None:
    """Refuse trackers that cannot be built.

    Raises:
        ValueError: an unknown W&B mode.
        ModuleNotFoundError: a tracker was asked for whose package is not installed.
    """
    from prdp.tracking import (
        mlflow_tracker,
        tensorboard_tracker,
        trackio_tracker,
        wandb_environment,
        wandb_tracker,
    )

    wandb_mode, _ = wandb_environment.chosen_mode(config.wandb)
    if config.tensorboard:
        tensorboard_tracker.check_installed()
    if config.mlflow:
        mlflow_tracker.check_installed()
    if config.trackio:
        trackio_tracker.check_installed()
    if wandb_mode != "disabled":
        wandb_tracker.check_installed()


def build_trackers(
    config: TrackingConfig,
    run_dir: Path,
    run_config: Mapping[str, Any],
    run_id: str,
    resumed_epoch: int | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Trackers:
    """The trackers that the configuration asks for; the JSONL log is always one of them.

    Args:
        config: the `tracking` group.
        run_dir: the run folder; made when missing.
        run_config: the composed configuration as plain containers, shown by the services.
        run_id: stable name of the run; the same one on resume continues the same W&B run.
        resumed_epoch: finished epochs of the checkpoint that a run resumes from; what was logged or evaluated beyond
            it is dropped. None for a fresh run; an older log and evaluations in the folder are then kept aside.
        facts: what the log and the services say about the run besides its configuration, such as the reward's version;
            names and plain containers.

    Raises:
        ValueError: an unknown W&B mode.
        ModuleNotFoundError: a tracker was asked for whose package is not installed.
        OSError: the log cannot be written.
    """
    from prdp.tracking import (
        evaluations,
        jsonl,
        mlflow_tracker,
        tensorboard_tracker,
        trackio_tracker,
        wandb_environment,
        wandb_tracker,
    )

    check_trackers(config)
    wandb_mode, variable = wandb_environment.chosen_mode(config.wandb)
    if variable is not None and wandb_mode == "disabled":
        log.warning("W&B: %s of the environment leaves it out, not tracking.wandb=%s", variable, config.wandb)
    evaluations.clear_later_evaluations(run_dir, resumed_epoch)
    required = jsonl.JsonlTracker(run_dir, run_id, resumed_epoch, facts)
    run_config = {**run_config, **(facts or {})}
    makers: dict[str, Callable[[], Tracker]] = {}
    if config.tensorboard:
        makers["TensorBoard"] = lambda: tensorboard_tracker.TensorBoardTracker(run_dir, run_config, resumed_epoch)
    if config.mlflow:
        makers["MLflow"] = lambda: mlflow_tracker.MlflowTracker(config, run_dir, run_config, run_id)
    if config.trackio:
        makers["Trackio"] = lambda: trackio_tracker.TrackioTracker(config, run_dir, run_config, run_id)
    if wandb_mode != "disabled":
        makers["W&B"] = lambda: wandb_tracker.WandbTracker(config, run_dir, run_config, run_id, resumed_epoch)
    optional: dict[str, Tracker] = {}
    for name, make in makers.items():
        try:
            optional[name] = make()
        except Exception as error:  # noqa: BLE001 - other people's code may raise anything
            log.warning("%s could not start and is left out: %s: %s", name, type(error).__name__, error)
    return Trackers([required], optional)
