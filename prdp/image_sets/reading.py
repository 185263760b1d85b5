"""Reading sets of images: prompts as a source that training draws from, and the images and latents of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prdp.evaluation.store import CHAIN_LATENTS, CHAINS, FINAL_LATENTS, LATENTS, digests_of, read_image
from prdp.image_sets.manifest import PROMPTS, Entry, Manifest, read
from prdp.support.errors import StartError
from prdp.support.suggest import did_you_mean
from prdp.types import Float32, UInt8


@dataclass(frozen=True)
class ImageSet:
    """A set of images on disk.

    Attributes:
        folder: of the set.
        manifest: what it is.
        entries: its prompts, in order.
    """

    folder: Path
    manifest: Manifest
    entries: tuple[Entry, ...]

    @classmethod
    def open(cls, folder: Path) -> ImageSet:
        """Read what the set is, and nothing of its images.

        Raises:
            StartError: see `prdp.image_sets.manifest.read`.
        """
        manifest, entries = read(folder)
        return cls(folder, manifest, tuple(entries))

    def missing(self) -> list[Path]:
        """Files of images and latents that are not there."""
        tensors = (LATENTS, CHAINS) if self.manifest.latents.get("chains") else (LATENTS,)
        wanted = dict.fromkeys(
            self.folder / entry.chunk / name for entry in self.entries for name in (*entry.files, *tensors)
        )
        return [file for file in wanted if not file.is_file()]

    def images(self, entry: Entry, count: int) -> UInt8:
        """The first `count` images of a prompt, uint8 [count, H, W, 3].

        Raises:
            StartError: a file is missing, is no picture, or holds another one than was drawn; names it.
        """
        files = [self.folder / entry.chunk / name for name in entry.files[:count]]
        images = []
        for file, digest in zip(files, entry.images, strict=False):
            try:
                image = read_image(file)
            except (OSError, ValueError) as error:
                raise StartError(f"{self._where}: {error}") from error
            _check_digest(self._where, file, digests_of(image[None])[0], digest)
            images.append(image)
        return np.stack(images)

    def latents(self, entry: Entry, count: int) -> Float32:
        """The final latents of these images, float32 [count, C, h, w].

        Raises:
            StartError: the file is missing, is no such file, or holds others than were drawn; names it.
        """
        from safetensors import SafetensorError, safe_open

        file, size = self.folder / entry.chunk / LATENTS, self.manifest.images_per_prompt
        begin = entry.row * size
        try:
            with safe_open(file, framework="numpy") as opened:
                rows = opened.get_slice(FINAL_LATENTS)[begin : begin + count]
        except (SafetensorError, OSError) as error:
            raise StartError(f"{self._where}: {file} cannot be read: {error}") from error
        for row, digest in zip(digests_of(rows), entry.latents, strict=False):
            _check_digest(self._where, file, row, digest)
        return rows.astype(np.float32)

    def chains(self, entry: Entry, count: int) -> Float32:
        """The latents before every step and at the end of these images, float32 [count, T + 1, C, h, w].

        Raises:
            StartError: the file is missing, is no such file, or ends elsewhere than the final latents; names it.
        """
        from safetensors import SafetensorError, safe_open

        file, size = self.folder / entry.chunk / CHAINS, self.manifest.images_per_prompt
        begin = entry.row * size
        try:
            with safe_open(file, framework="numpy") as opened:
                rows = opened.get_slice(CHAIN_LATENTS)[begin : begin + count]
        except (SafetensorError, OSError) as error:
            raise StartError(f"{self._where}: {file} cannot be read: {error}") from error
        for row, digest in zip(digests_of(np.ascontiguousarray(rows[:, -1])), entry.latents, strict=False):
            _check_digest(self._where, file, row, digest)
        return rows.astype(np.float32)

    @property
    def _where(self) -> str:
        return f"rollouts.path={self.folder}"


class StoredPrompts:
    """The prompts of sets as a source, one set behind the other, perhaps of one skill alone.

    Args:
        folders: of the sets.
        skill: see `Entry.skill`; None for all prompts.

    Attributes:
        key: of the configuration.
        fingerprint: changes with the images and prompts.
        sets: that were opened.

    Raises:
        StartError: a folder that is no whole set, or a skill that no prompt has; by key.
    """

    key = "rollouts.path"

    def __init__(self, folders: Sequence[str], skill: str | None = None) -> None:
        self.sets = tuple(ImageSet.open(Path(folder).expanduser()) for folder in folders)
        places = [(one, entry) for one in self.sets for entry in one.entries]
        self._places = [(one, entry) for one, entry in places if skill is None or entry.skill == skill]
        if not self._places:
            skills = sorted({entry.skill for _, entry in places})
            raise StartError(
                f"rollouts.skill={skill}: no prompt of {', '.join(map(str, folders))} is for it; there are "
                f"{', '.join(skills)}{did_you_mean(str(skill), skills)}"
            )
        told = "|".join([*(one.manifest.digest for one in self.sets), str(skill)])
        self.fingerprint = hashlib.blake2b(told.encode(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> tuple[str, Mapping[str, Any]]:
        entry = self._places[index][1]
        return entry.prompt, entry.metadata

    def texts(self) -> Iterator[str]:
        """All prompts in order."""
        for _, entry in self._places:
            yield entry.prompt

    def images(self, index: int, count: int) -> UInt8:
        """See `ImageSet.images`."""
        of, entry = self._places[index]
        return of.images(entry, count)

    def latents(self, index: int, count: int) -> Float32:
        """See `ImageSet.latents`."""
        of, entry = self._places[index]
        return of.latents(entry, count)


def _check_digest(where: str, file: Path, found: str, expected: str) -> None:
    if found != expected:
        raise StartError(
            f"{where}: {file} was changed: the digest of what it holds is {found}, and {PROMPTS} of the set says "
            f"{expected}; make the set again"
        )
