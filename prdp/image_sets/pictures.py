"""Folders of somebody's own pictures with captions, which become sets of images without a model that draws."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prdp.cluster.base import SamplerLike
from prdp.config import LearnerConfig, ModelConfig
from prdp.diffusion import build_policy
from prdp.evaluation.store import FINAL_LATENTS
from prdp.image_sets.fitting import fitted
from prdp.image_sets.stored_sampler import Encoding
from prdp.prompts.records import Columns
from prdp.support.json_lines import read_json_lines
from prdp.support.picture_files import FORMATS, opened_picture
from prdp.types import PromptBatch, Rollout, Weights

CAPTIONS = "metadata.jsonl"
FILE_NAME = "file_name"
_ORIENTATION, _ON_ITS_SIDE = 0x0112, 5
"""The tag of EXIF, and the least of its values that turn a picture by a quarter."""


@dataclass(frozen=True)
class _Picture:
    file: Path
    caption: str
    metadata: Mapping[str, Any]


class PictureFolder:
    """Pictures with captions as a source of prompts, in the order of their names.

    With a file metadata.jsonl, as the datasets library has it for folders of images, its lines name the pictures:
    {"file_name": "a.png", "text": "a caption"}, where the caption may be called prompt or caption, too; all other keys
    become metadata. Without, each picture of the folder and the folders in it has its caption in a text file of its
    name: a.txt beside a.png.

    Args:
        path: of the folder.

    Attributes:
        fingerprint: changes with pictures, captions and metadata.

    Raises:
        ValueError: no folder, no picture, a picture without a caption, one that is missing, or a file that is no
            picture; names it.
    """

    def __init__(self, path: str) -> None:
        self.folder = Path(path).expanduser()
        if not self.folder.is_dir():
            raise ValueError(f"there is no folder {self.folder}")
        listed = self.folder / CAPTIONS
        self._pictures = sorted(
            _listed(listed) if listed.is_file() else _captioned(self.folder), key=lambda one: one.file
        )
        if not self._pictures:
            raise ValueError(f"{self.folder} holds no pictures ({', '.join(FORMATS)})")
        digest = hashlib.blake2b(digest_size=12)
        self._sizes = []
        for one in self._pictures:
            with opened_picture(one.file, tuple(FORMATS.values())) as image:
                turned = image.getexif().get(_ORIENTATION, 1) >= _ON_ITS_SIDE
                self._sizes.append((image.width, image.height) if turned else (image.height, image.width))
            digest.update(f"{one.file.relative_to(self.folder)}|{one.caption}|{one.metadata}|".encode())
            digest.update(hashlib.blake2b(one.file.read_bytes(), digest_size=12).digest())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> tuple[str, Mapping[str, Any]]:
        one = self._pictures[index]
        return one.caption, one.metadata

    def picture(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """A picture at a size (H, W), uint8 [H, W, 3]; see `prdp.image_sets.fitting.fitted`."""
        with opened_picture(self._pictures[index].file, tuple(FORMATS.values())) as image:
            return fitted(image, size)

    def note(self, size: tuple[int, int]) -> str:
        """How many pictures are enlarged for a size (H, W); empty where none are."""
        smaller = [
            one.file
            for one, (height, width) in zip(self._pictures, self._sizes, strict=True)
            if height < size[0] or width < size[1]
        ]
        if not smaller:
            return ""
        return (
            f"{len(smaller):,} of {len(self):,} pictures are smaller than {size[0]} x {size[1]} and are enlarged; the "
            f"first is {smaller[0]}"
        )


class PictureSampler:
    """Gives pictures where a sampler would draw, with their latents by a model's VAE.

    Args:
        pictures: a prompt is found by its place in them.
        encoding: makes the latents; its size is that of the pictures.
    """

    def __init__(self, pictures: PictureFolder, encoding: Encoding) -> None:
        self._pictures, self._encoding = pictures, encoding
        self._holds = (0, "")

    def load_weights(self, weights: Weights) -> tuple[int, str]:
        """There are none to bind."""
        self._holds = (weights.version, weights.checksum)
        return self._holds

    def sample(self, prompts: PromptBatch, images_per_prompt: int, seed: int, trajectory: bool = True) -> Rollout:
        """One picture of each prompt."""
        start = time.perf_counter()
        images = np.stack([self._pictures.picture(index, self._encoding.size) for index in prompts.indices])
        version, checksum = self._holds
        return Rollout(
            prompts=prompts,
            images_per_prompt=images_per_prompt,
            images=images,
            weights_version=version,
            weights_checksum=checksum,
            stored={FINAL_LATENTS: self._encoding(images)},
            seconds={"sample": time.perf_counter() - start},
        )


def build_picture_sampler(path: str, model: ModelConfig, size: tuple[int, int], microbatch: int) -> SamplerLike:
    """Picklable as a `functools.partial`, so that an actor can call it."""
    policy = build_policy(model, LearnerConfig(mode="frozen"), seed=0, keep_reference=False)
    return PictureSampler(PictureFolder(path), Encoding(policy, size, microbatch))


def _listed(file: Path) -> Iterator[_Picture]:
    columns = Columns(None, None, "all")
    for number, record in enumerate(read_json_lines(file, lambda content: content), start=1):
        where = f"{file} line {number}"
        if not isinstance(record, dict) or not isinstance(record.get(FILE_NAME), str):
            raise ValueError(f"{where}: expected an object with {FILE_NAME}, the name of a picture")
        name = record[FILE_NAME]
        picture = file.parent / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{where}: {FILE_NAME}={name}: must lie in {file.parent}")
        if not picture.is_file() or picture.suffix.lower() not in FORMATS:
            raise ValueError(f"{where}: {FILE_NAME}={name}: there is no such picture ({', '.join(FORMATS)})")
        row = columns.row({key: value for key, value in record.items() if key != FILE_NAME}, where)
        yield _Picture(picture, _caption(row.text, where), row.metadata)


def _captioned(folder: Path) -> Iterator[_Picture]:
    for file in folder.rglob("*"):
        if file.suffix.lower() not in FORMATS or not file.is_file():
            continue
        beside = file.with_suffix(".txt")
        if not beside.is_file():
            raise ValueError(f"{file} has no caption: write it into {beside.name} beside it, or all into {CAPTIONS}")
        yield _Picture(file, _caption(beside.read_text(encoding="utf-8"), str(beside)), {})


def _caption(text: str | None, where: str) -> str:
    caption = (text or "").strip()
    if not caption:
        raise ValueError(f"{where}: the caption is empty")
    return caption
