"""Trackio: metrics, pictures and the configuration of a run, kept on this machine; needs the extra `trackio`."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prdp.tracking.tensorboard_tracker import picture_grid
from prdp.tracking.wandb_tracker import sweep_name
from prdp.types import Float64, UInt8

if TYPE_CHECKING:
    from prdp.config import TrackingConfig

PROJECT = "prdp"
"""Where `tracking.trackio_project` names none."""


class TrackioTracker:
    """Sends metrics and pictures to a run of Trackio, whose step is the epoch.

    One run per job, called after the run's folder and id: a resumed job goes on with the run of that name. Epochs that
    are run again are logged again, at the same step. Trackio's own variables hold: `TRACKIO_DIR` for the folder of its
    databases, `TRACKIO_SPACE_ID` and `TRACKIO_SERVER_URL` for a page elsewhere.
    """

    def __init__(self, config: TrackingConfig, run_dir: Path, run_config: Mapping[str, Any], run_id: str) -> None:
        """Start the run, or continue the one of the same name. Arguments as in `build_trackers`.

        Raises:
            ModuleNotFoundError: trackio is not installed.
        """
        check_installed()
        import trackio

        self._trackio: Any = trackio
        with _silent():
            self._run: Any = trackio.init(
                project=config.trackio_project or PROJECT,
                name=f"{run_dir.name}-{run_id}",
                group=sweep_name(run_dir),
                config=dict(run_config),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Record numbers of one epoch."""
        self._run.log({name: float(value) for name, value in metrics.items()}, step=epoch)

    def images(self, name: str, images: UInt8, captions: Sequence[str], epoch: int) -> None:
        """Record uint8 images [n, H, W, 3] as one grid, with the captions as a numbered list below it."""
        text = "\n".join(f"{i}. {caption}" for i, caption in enumerate(captions, 1))
        self._run.log({name: self._trackio.Image(picture_grid(images), caption=text)}, step=epoch)

    def histogram(self, name: str, values: Float64, epoch: int) -> None:
        """Record how numbers [n] are spread."""
        self._run.log({name: self._trackio.Histogram(values)}, step=epoch)

    def finish(self, status: str) -> None:
        """Write what is left, and close the run."""
        with _silent():
            self._trackio.finish()  # of the one run of this process; its own `finish` would be called again at exit


def _silent() -> contextlib.AbstractContextManager[Any]:
    """Trackio prints how to open its page; docs/watching.md tells it, and the terminal is the run's own."""
    return contextlib.redirect_stdout(io.StringIO())


def check_installed() -> None:
    """Raise ModuleNotFoundError that tells what to do when trackio is missing."""
    if importlib.util.find_spec("trackio") is None:
        raise ModuleNotFoundError(
            "tracking.trackio=true needs Trackio, which is not installed: `pip install prdp[trackio]`"
        )
