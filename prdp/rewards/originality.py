"""How far a picture is from those of a folder: what it copies costs."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from prdp.rewards.clip_model import check_settings
from prdp.rewards.image_embeddings import check_embeddings, load_embeddings
from prdp.rewards.pixels import check_batch
from prdp.support.picture_files import FORMATS, opened_picture
from prdp.support.storage import TensorFileError, load_tensors, save_tensors
from prdp.support.writable import check_can_be_written
from prdp.types import Float32, Float64, UInt8

CODE_VERSION = "1"
_AT_ONCE = 16
_ROWS = "features"


class Originality:
    """1 - the highest cosine similarity to a picture of a folder, in features of the whole picture; the prompt plays no
    part.

    0 is a copy. What other pictures get depends on the features: by CLIP two unrelated ones already have a cosine of
    one half or so, so only differences count.

    Args:
        folder: of pictures, with the folders in it; files that end otherwise than `FORMATS` says are not looked at.
        model: what makes the features: CLIP, DINO, DINOv2 or DINOv3, a folder in transformers format or a hub id.
            None compares small pictures, which finds copies and recoloured ones, but no cut or turned ones.
        cache: folder in which the features of `folder` are kept for later; None computes them at every start.
        device, dtype, batch_size, memory_mib: see `prdp.rewards.clip_model.ClipScorer`.

    Raises:
        ValueError: what `check` raises; a file that is no whole picture.
    """

    name = "originality"

    def __init__(
        self,
        folder: str,
        model: str | None = None,
        cache: str | None = None,
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int | None = None,
        memory_mib: float | None = None,
    ) -> None:
        check_settings(device, dtype, batch_size, memory_mib)
        files = pictures_of(folder)
        self._embeddings = load_embeddings(self.name, "model", model, device, dtype, batch_size, memory_mib)
        digest = _digest(files)
        self.version = f"{CODE_VERSION}-{self._embeddings.version}-{digest[:12]}"
        kept = None
        if cache is not None:
            told = hashlib.blake2b(f"{self._embeddings.version}|{digest}".encode(), digest_size=12).hexdigest()
            kept = Path(cache).expanduser() / f"originality-{told}.safetensors"
        rows = _kept_rows(kept, len(files))
        if rows is None:
            rows = np.concatenate([self._embeddings.features(batch) for batch in _batches(files)])
            if kept is not None:
                save_tensors(kept, {_ROWS: rows})
        self._rows = rows

    @classmethod
    def check(cls, folder: str, model: str | None = None, cache: str | None = None, **settings: Any) -> None:
        """Check the arguments, that there are pictures, and the model's files, without reading either whole.

        Raises:
            ValueError: naming the argument, the file and what is wrong with it.
        """
        check_settings(**settings)
        pictures_of(folder)
        check_embeddings("model", model)
        if cache is not None:
            check_can_be_written("cache", Path(cache).expanduser())

    def score(self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Float64:
        """Originalities, float64 [B] in [0, 2], of uint8 images [B, H, W, 3]."""
        check_batch(images, prompts, metadata)
        nearest = (self._embeddings.features(images) @ self._rows.T).max(axis=1)
        return 1 - np.clip(nearest.astype(np.float64), -1, 1)


def pictures_of(folder: str) -> list[Path]:
    """The pictures in a folder and below it, by name.

    Raises:
        ValueError: no folder, or none in it.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise ValueError(f"folder={folder}: there is no such folder")
    files = sorted(file for file in place.rglob("*") if file.suffix.lower() in FORMATS and file.is_file())
    if not files:
        raise ValueError(f"folder={folder}: holds no pictures ({', '.join(FORMATS)})")
    return files


def _batches(files: Sequence[Path]) -> Iterator[UInt8]:
    """The pictures in order, uint8 [n, H, W, 3], as many of one size as stand side by side, up to `_AT_ONCE`."""
    for _, of_size in groupby(map(_picture, files), key=lambda image: image.shape):
        while batch := list(islice(of_size, _AT_ONCE)):
            yield np.stack(batch)


def _picture(file: Path) -> UInt8:
    from PIL import ImageOps

    with opened_picture(file, tuple(FORMATS.values())) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def _digest(files: Sequence[Path]) -> str:
    """Of the contents, whatever the files are called and where they lie."""
    contents = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return hashlib.sha256("".join(contents).encode()).hexdigest()


def _kept_rows(file: Path | None, count: int) -> Float32 | None:
    """Features that an earlier start kept, float32 [count, D]; None where it did not, or the file is damaged."""
    if file is not None:
        with contextlib.suppress(FileNotFoundError, TensorFileError):
            rows = load_tensors(file).get(_ROWS)
            if rows is not None and rows.dtype == np.float32 and rows.ndim == 2 and len(rows) == count:
                return rows
    return None
