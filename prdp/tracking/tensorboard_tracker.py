"""TensorBoard event files under `run_dir/tensorboard`; needs the extra `tensorboard`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prdp.tracking.jsonl import METRICS_FILE, read_metrics
from prdp.types import Float64, UInt8

FOLDER = "tensorboard"


class TensorBoardTracker:
    """Writes scalars, pictures and the configuration; the step is the epoch."""

    def __init__(self, run_dir: Path, run_config: Mapping[str, Any], resumed_epoch: int | None = None) -> None:
        """Open a new event file. Arguments as in `build_trackers`; on resume, TensorBoard hides the steps beyond
        `resumed_epoch` that earlier event files hold; where there are none, the numbers of the run's log are written.

        Raises:
            ModuleNotFoundError: tensorboard is not installed.
        """
        check_installed()
        from torch.utils.tensorboard import SummaryWriter

        elsewhere = resumed_epoch is not None and not (run_dir / FOLDER).exists()
        purge = None if resumed_epoch is None else resumed_epoch + 1
        self._writer = SummaryWriter(str(run_dir / FOLDER), purge_step=purge)
        if elsewhere and (run_dir / METRICS_FILE).exists():
            for row in read_metrics(run_dir):
                numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
                self.log(numbers, int(numbers.pop("epoch")))
        if resumed_epoch is None:
            text = json.dumps(run_config, indent=2, default=str)
            self._writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()), 0)

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Record numbers of one epoch."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, float(value), epoch)
        self._writer.flush()

    def images(self, name: str, images: UInt8, captions: Sequence[str], epoch: int) -> None:
        """Record uint8 images [n, H, W, 3] as one grid, and the captions as a numbered list beside it."""
        self._writer.add_image(name, picture_grid(images), epoch, dataformats="HWC")
        self._writer.add_text(
            f"{name}/captions", "\n".join(f"{i}. {text}" for i, text in enumerate(captions, 1)), epoch
        )
        self._writer.flush()

    def histogram(self, name: str, values: Float64, epoch: int) -> None:
        """Record how numbers [n] are spread."""
        self._writer.add_histogram(name, values, epoch)

    def finish(self, status: str) -> None:
        """Flush and close."""
        self._writer.add_text("status", status)
        self._writer.close()


def check_installed() -> None:
    """Raise ModuleNotFoundError that tells what to do when tensorboard is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ModuleNotFoundError(
            "tracking.tensorboard=true needs TensorBoard, which is not installed: `pip install prdp[tensorboard]`"
        )


def picture_grid(images: UInt8, gap: int = 2) -> UInt8:
    """Lay uint8 [n, H, W, 3] out in a nearly square grid on white: uint8 [rows*(H+gap)-gap, columns*(W+gap)-gap, 3]."""
    count, height, width, _ = images.shape
    columns = max(1, int(np.ceil(np.sqrt(count))))
    rows = max(1, -(-count // columns))
    grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        grid[top : top + height, left : left + width] = image
    return grid
