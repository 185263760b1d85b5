"""Image quality without a reference (NIQE, BRISQUE, MUSIQ, CLIP-IQA, ...): the metrics of the package pyiqa."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prdp.rewards.batching import Batches, choose_device
from prdp.rewards.clip_model import check_settings
from prdp.rewards.dependencies import require
from prdp.rewards.pixels import check_batch
from prdp.rewards.weight_files import check_holds_data, digest, find_file
from prdp.support.suggest import did_you_mean
from prdp.types import Float64, UInt8

INSTALL = "pyiqa==0.1.16"
_MATLAB = b"MATLAB "


class ImageQuality:
    """A metric of pyiqa in its own unit, with a minus sign where less is better; the prompt plays no part.

    Args:
        metric: pyiqa's name of it, such as niqe, brisque, piqe, musiq or clipiqa.
        path: its weights; None lets pyiqa take its own, which it downloads where they are not in its cache.
        device: see `prdp.rewards.batching.choose_device`.
        batch_size, memory_mib: see `prdp.rewards.batching.Batches`.

    Raises:
        ValueError: what `check` raises.
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
        self.check(metric, path, device=device, batch_size=batch_size, memory_mib=memory_mib)
        pyiqa = _import_pyiqa()
        self.name = metric
        self._device = choose_device(self.name, device)
        file = None if path is None else find_file("path", path)
        weights = {} if file is None else {"pretrained_model_path": str(file)}
        self._metric = pyiqa.create_metric(metric, device=self._device, **weights)
        self._sign = -1.0 if self._metric.lower_better else 1.0
        self.version = "-".join(["1", f"pyiqa{pyiqa.__version__}", *([digest([file])] if file else [])])
        self._batches = Batches(self.name, batch_size, memory_mib, image_mib=256.0)

    @classmethod
    def check(cls, metric: str = "niqe", path: str | None = None, **settings: Any) -> None:
        """Check that pyiqa and the metric are there, and the file of the weights where one is given.

        Raises:
            ValueError: naming the argument or the package and what is wrong with it.
        """
        check_settings(**settings)
        if path is not None:
            file = find_file("path", path)
            assert file is not None
            with file.open("rb") as opened:
                # The statistics of the classic metrics are MATLAB files; all else is what torch.save wrote.
                is_matlab = opened.read(len(_MATLAB)) == _MATLAB
            if not is_matlab:
                check_holds_data("path", file)
        if not require(metric, "pyiqa", install=INSTALL):
            return
        pyiqa = _import_pyiqa()
        # The others compare with a reference image, which a generated one has not.
        names = pyiqa.list_models("NR")
        if metric not in names:
            raise ValueError(
                f"metric={metric}: not among the metrics of pyiqa {pyiqa.__version__} that need no reference image"
                f"{did_you_mean(metric, names) or '; these are ' + ', '.join(sorted(names))}"
            )

    def score(self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Float64:
        """Qualities, float64 [B], higher is better, of uint8 images [B, H, W, 3]."""
        check_batch(images, prompts, metadata)
        return self._batches.map(lambda part: self._score_batch(images[part]), len(images))

    def _score_batch(self, images: UInt8) -> Float64:
        import torch

        values = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div(255).to(self._device)
        with torch.inference_mode():
            return self._sign * self._metric(values).double().flatten().cpu().numpy()


def _import_pyiqa() -> Any:
    try:
        import pyiqa  # type: ignore[import-not-found, unused-ignore]
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"pyiqa is installed but cannot be imported; does torchvision fit torch? {error}") from error
    return pyiqa
