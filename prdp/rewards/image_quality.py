"""Image quality without a reference (NIQE, BRISQUE, MUSIQ, CLIP-IQA, ...): the metrics of the package pyiqa."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prdp.rewards.batching import Batches, check_batching, choose_device
from prdp.rewards.dependencies import require
from prdp.rewards.pixels import check_batch
from prdp.rewards.weight_files import digest, find_file
from prdp.types import Float64, UInt8

INSTALL = "pyiqa==0.1.16"


class ImageQuality:
    """A metric of pyiqa in its own unit, with a minus sign where less is better; the prompt plays no part.

    Args:
        metric: pyiqa's name of it, such as niqe, brisque, piqe, musiq or clipiqa.
        path: its weights; None lets pyiqa take its own, which it downloads where they are not in its cache.
        device: see `prdp.rewards.batching.choose_device`.
        batch_size, memory_mib: see `prdp.rewards.batching.Batches`.

    Raises:
        ValueError: what `check` raises; a metric that needs a reference image.
        MissingDependencyError: pyiqa is not installed.
    """

    def __init__(
        self,
        metric: str = "niqe",
        path: str | None = None,
        device: str = "auto",
        batch_size: int | None = None,
        memory_mib: float | None = None,
    ) -> None:
        self.check(metric, path, device, batch_size, memory_mib)
        import pyiqa  # type: ignore[import-not-found, unused-ignore]

        names = pyiqa.list_models()
        if metric not in names:
            raise ValueError(f"metric={metric}: pyiqa {pyiqa.__version__} has only {', '.join(sorted(names))}")
        self.name = metric
        self._device = choose_device(self.name, device)
        file = None if path is None else Path(os.path.expanduser(path))
        weights = {} if file is None else {"pretrained_model_path": str(file)}
        self._metric = pyiqa.create_metric(metric, device=self._device, **weights)
        if self._metric.metric_mode != "NR":
            raise ValueError(f"metric={metric}: compares with a reference image, which a generated one has not")
        self._sign = -1.0 if self._metric.lower_better else 1.0
        self.version = "-".join(["1", f"pyiqa{pyiqa.__version__}", *([digest([file])] if file else [])])
        self._batches = Batches(self.name, batch_size, memory_mib, image_mib=256.0)

    @classmethod
    def check(
        cls,
        metric: str = "niqe",
        path: str | None = None,
        device: str = "auto",
        batch_size: int | None = None,
        memory_mib: float | None = None,
    ) -> None:
        """Check that pyiqa is there, and the file of the weights where one is given.

        Raises:
            ValueError: naming the argument or the package and what is wrong with it.
        """
        require(metric, "pyiqa", install=INSTALL)
        check_batching(batch_size, memory_mib)
        if path is not None:
            find_file("path", path)

    def score(self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Float64:
        """Qualities, float64 [B], higher is better, of uint8 images [B, H, W, 3]."""
        check_batch(images, prompts, metadata)
        return self._batches.map(lambda part: self._score_batch(images[part]), len(images))

    def _score_batch(self, images: UInt8) -> Float64:
        import torch

        values = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div(255).to(self._device)
        with torch.inference_mode():
            return self._sign * self._metric(values).double().flatten().cpu().numpy()
