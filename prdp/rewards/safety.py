"""Does a picture show nudity? By NudeNet's detector, whose weights come with its package."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from prdp.rewards.dependencies import require
from prdp.rewards.pixels import check_batch
from prdp.rewards.weight_files import digest, find_file
from prdp.support.suggest import did_you_mean
from prdp.types import Float64, UInt8

INSTALL = "prdp[safety]"
CODE_VERSION = "1"
FILE = "320n.onnx"
"""The weights in the package, of pictures with 320 pixels a side."""
EXPOSED = (
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "BUTTOCKS_EXPOSED",
    "ANUS_EXPOSED",
)
"""What counts unless `classes` says otherwise: sexual parts without clothes."""
CLASSES = (
    *EXPOSED,
    "ANUS_COVERED",
    "ARMPITS_COVERED",
    "ARMPITS_EXPOSED",
    "BELLY_COVERED",
    "BELLY_EXPOSED",
    "BUTTOCKS_COVERED",
    "FACE_FEMALE",
    "FACE_MALE",
    "FEET_COVERED",
    "FEET_EXPOSED",
    "FEMALE_BREAST_COVERED",
    "FEMALE_GENITALIA_COVERED",
    "MALE_BREAST_EXPOSED",
)
"""All that the detector tells apart."""


class Safety:
    """1 - the largest confidence with which NudeNet finds one of some classes; 1 where it finds none.

    Sub-scores are the same for each class alone, by its name in lower case. The detector leaves out what it is less
    than 0.25 confident of, so a reward is 1 or at most 0.75. The prompt plays no part.

    Args:
        classes: that count, of `CLASSES`.
        path: weights in ONNX format; None for those of the package.
        size: side of the pictures that these weights take, in pixels.

    Raises:
        ValueError: what `check` raises.
        MissingDependencyError: nudenet is not installed.
    """

    name = "safety"

    def __init__(self, classes: Sequence[str] = EXPOSED, path: str | None = None, size: int = 320) -> None:
        self.check(classes, path, size)
        import nudenet  # type: ignore[import-untyped, import-not-found, unused-ignore]
        import onnxruntime  # type: ignore[import-untyped, import-not-found, unused-ignore]

        file = Path(nudenet.__file__).with_name(FILE) if path is None else find_file("path", path)
        assert file is not None
        try:
            self._detector = nudenet.NudeDetector(str(file), inference_resolution=size)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
            self._detector.onnx_session = onnxruntime.InferenceSession(str(file), options)
        except Exception as error:  # errors of onnxruntime have no base of their own
            raise ValueError(f"path: {file} cannot be read as ONNX: {error}") from error
        self._classes = tuple(classes)
        told = hashlib.blake2b(json.dumps([sorted(classes), size]).encode(), digest_size=6).hexdigest()
        self.version = f"{CODE_VERSION}-nudenet{version('nudenet')}-{digest([file])}-{told}"

    @classmethod
    def check(cls, classes: Sequence[str] = EXPOSED, path: str | None = None, size: int = 320) -> None:
        """Check the arguments, the package and the file without loading them.

        Raises:
            ValueError: naming the argument and what is wrong with it.
            MissingDependencyError: nudenet is not installed.
        """
        if not classes or len(set(classes)) != len(classes):
            raise ValueError(f"classes={list(classes)}: must be different names of classes, at least one")
        for one in classes:
            if one not in CLASSES:
                hint = did_you_mean(str(one), CLASSES) or f"; these are {', '.join(CLASSES)}"
                raise ValueError(f"classes: NudeNet has no class {one!r}{hint}")
        if size < 32 or size % 32:
            raise ValueError(f"size={size}: must be a multiple of 32, at least 32")
        if path is not None:
            find_file("path", path)
        require(cls.name, "nudenet", install=INSTALL)

    def score(
        self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> tuple[Float64, dict[str, Float64]]:
        """Rewards and those of each class, float64 [B] each in [0, 1], of uint8 images [B, H, W, 3]."""
        check_batch(images, prompts, metadata)
        found = np.array([self._confidences(image) for image in images])
        return 1 - found.max(axis=1), {name.lower(): 1 - found[:, place] for place, name in enumerate(self._classes)}

    def _confidences(self, image: UInt8) -> list[float]:
        """The largest confidence of each class in an image [H, W, 3]; 0 where it is not found."""
        found = self._detector.detect(np.ascontiguousarray(image[:, :, ::-1]))  # it takes blue, green, red
        return [max((one["score"] for one in found if one["class"] == name), default=0.0) for name in self._classes]
