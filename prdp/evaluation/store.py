"""Images, scores and features of an evaluation on disk, chunk by chunk, so that nothing is computed twice.

output_dir/samples/<model>/<prompt set>/seed_0/00008-00011/   a chunk of whole prompts
    chunk.json                  what made the images: model, sampler, prompts, seed
    00008_0.png                 first image of prompt number 8
    latents.safetensors         what the images were decoded from, where the key says `latents`
    chains.safetensors          the latents before every step and at the end, where the key says `chains`
    scores.<reward>.json        with what made them
    features.<name>.safetensors
A chunk's folder appears as a whole, and goes as a whole when its images are made again, with the scores in it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prdp.diffusion.guidance import guided
from prdp.support.picture_files import opened_picture
from prdp.support.storage import atomic_directory, load_tensors, save_tensors, write_atomically
from prdp.tracking.strict_json import from_strict_json, strict_json
from prdp.types import Float32, Float64, PromptBatch, Rollout, UInt8

FOLDER = "samples"
RECORD = "chunk.json"
LATENTS = "latents.safetensors"
FINAL_LATENTS = "final_latents"
CHAINS, CHAIN_LATENTS = "chains.safetensors", "chain_latents"


@dataclass(frozen=True)
class Scores:
    """Of one chunk: rewards float64 [n], sub-scores {name: float64 [n]}, and the seconds it took."""

    rewards: Float64
    sub_scores: Mapping[str, Float64]
    seconds: float


@dataclass(frozen=True)
class Chunk:
    """Where the images of a few consecutive prompts of a set lie.

    Attributes:
        folder: of the chunk.
        prompts: the prompts.
        images_per_prompt: of each.
        key: what makes the images, as plain values; other values make other images. With `latents`, the name of a
            floating dtype, final latents are kept in it, and digests of all that is kept.
    """

    folder: Path
    prompts: PromptBatch
    images_per_prompt: int
    key: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.prompts) * self.images_per_prompt

    @property
    def keeps(self) -> bool:
        """Whether samplers have to record something on the way to the images."""
        return bool(self.key.get("kl") or self.key.get("latents"))

    def differences(self) -> list[str]:
        """What stands in the way of using the images on disk: nothing, 'missing', or the parts of the key that
        differ.
        """
        record = _read(self.folder / RECORD)
        if record is None:
            return ["missing"]
        found = record.get("key", {})
        return sorted(
            name for name in self.key.keys() | found.keys() if name != "kl" and found.get(name) != self.key.get(name)
        ) + (["kl"] if self.key.get("kl") and not found.get("kl") else [])

    def save(self, rollout: Rollout) -> None:
        """Write images and record; scores of earlier images go."""
        from PIL import Image

        measured = "log_ratio" in rollout.stored
        ratios = rollout.numbers("log_ratio").mean(axis=1) if measured else np.full(len(rollout), np.nan)
        record = {
            "key": dict(self.key),
            "prompts": list(self.prompts.texts),
            "images_per_prompt": self.images_per_prompt,
            "seconds": float(rollout.seconds.get("sample", 0.0)),
            "logratio_ref": [float(value) for value in ratios],
        }
        if rollout.network_passes is not None:
            record["network_passes"] = [float(value) for value in rollout.network_passes]
        latents = None
        if self.key.get("latents"):
            latents = np.asarray(rollout.stored[FINAL_LATENTS]).astype(self.key["latents"])
            record["digests"] = {"images": digests_of(np.asarray(rollout.images)), "latents": digests_of(latents)}
        with atomic_directory(self.folder) as temporary:
            for name, image in zip(self.names(), rollout.images, strict=True):
                Image.fromarray(image).save(temporary / name)
            if latents is not None:
                save_tensors(temporary / LATENTS, {FINAL_LATENTS: latents})
            if self.key.get("chains"):
                chain = np.asarray(rollout.stored[CHAIN_LATENTS]).astype(self.key["latents"])
                save_tensors(temporary / CHAINS, {CHAIN_LATENTS: chain})
            (temporary / RECORD).write_text(_dump(record), encoding="utf-8")

    def names(self) -> list[str]:
        """File names of the images, prompt-major."""
        return [
            f"{self.prompts.offset + prompt:05d}_{image}.png"
            for prompt in range(len(self.prompts))
            for image in range(self.images_per_prompt)
        ]

    def images(self) -> UInt8:
        """uint8 [n, H, W, 3].

        Raises:
            ValueError: a file that is no whole picture.
        """
        pictures = []
        for name in self.names():
            try:
                pictures.append(read_image(self.folder / name))
            except (OSError, ValueError) as error:
                raise ValueError(f"{error}; remove its folder") from error
        return np.stack(pictures)

    def digests(self) -> tuple[list[str], list[str]]:
        """Digests of the pixels, and of the latents, of each image of a chunk that keeps latents."""
        record = _read(self.folder / RECORD)
        assert record is not None, self.folder
        return list(record["digests"]["images"]), list(record["digests"]["latents"])

    def sampling(self) -> tuple[float, Float64]:
        """(seconds that sampling took, logratio_ref of each image: float64 [n], NaN where it was not measured)."""
        record = _read(self.folder / RECORD)
        assert record is not None, self.folder
        return float(record["seconds"]), np.array(record["logratio_ref"], np.float64)

    def network_passes(self) -> Float64:
        """Passes of the network that drew each image, float64 [n]; of chunks of before they were counted by the
        settings of the sampler, NaN where there was none.
        """
        record = _read(self.folder / RECORD)
        assert record is not None, self.folder
        if "network_passes" in record:
            return np.array(record["network_passes"], np.float64)
        steps, scale = (self.key.get(f"sampler.{name}", np.nan) for name in ("steps", "guidance_scale"))
        return np.full(len(self), steps * (1.0 + guided(scale)))

    def scores(self, reward: str, key: Mapping[str, Any]) -> Scores | None:
        """The scores of a reward that were made by `key`; None when there are none."""
        found = read_scores(self.folder, reward)
        return found[1] if found is not None and found[0] == {**key, **self._score_key()} else None

    def has_scores_of_another(self, reward: str, key: Mapping[str, Any]) -> bool:
        """Whether scores of that name are there, but by another version, configuration or metadata."""
        return (self.folder / f"scores.{reward}.json").is_file() and self.scores(reward, key) is None

    def save_scores(self, reward: str, key: Mapping[str, Any], scores: Scores) -> None:
        """Write the scores of a reward."""
        record = {
            "key": {**key, **self._score_key()},
            "rewards": scores.rewards.tolist(),
            "sub_scores": {name: values.tolist() for name, values in scores.sub_scores.items()},
            "seconds": scores.seconds,
        }
        write_atomically(self.folder / f"scores.{reward}.json", _dump(record).encode())

    def features(self, space: str) -> Float32 | None:
        """Float32 [n, D] in a feature space, by its name and version; None when there are none."""
        file = self.folder / f"features.{space}.safetensors"
        return load_tensors(file)["features"].astype(np.float32) if file.is_file() else None

    def save_features(self, space: str, features: Float32) -> None:
        """Write features."""
        save_tensors(self.folder / f"features.{space}.safetensors", {"features": features})

    def _score_key(self) -> dict[str, Any]:
        return {"metadata": digest_of(list(self.prompts.metadata))}


def read_scores(folder: Path, reward: str) -> tuple[dict[str, Any], Scores] | None:
    """What made the scores of a reward in a chunk's folder, and they; None when there are none."""
    record = _read(folder / f"scores.{reward}.json")
    if record is None:
        return None
    subs = {name: np.array(values, np.float64) for name, values in record["sub_scores"].items()}
    return record["key"], Scores(np.array(record["rewards"], np.float64), subs, float(record["seconds"]))


def read_image(file: Path) -> UInt8:
    """A picture, uint8 [H, W, 3].

    Raises:
        ValueError: a file that is no whole picture.
        FileNotFoundError: there is none.
    """
    with opened_picture(file) as image:
        return np.asarray(image.convert("RGB"))


def chunks_of(
    root: Path,
    model: str,
    prompt_set: str,
    seed: int,
    prompts: PromptBatch,
    prompts_per_chunk: int,
    images_per_prompt: int,
    key: Mapping[str, Any],
) -> list[Chunk]:
    """The chunks of one model on one prompt set with one seed.

    Args:
        root: output_dir of the evaluation.
        key: what makes the images, besides seed and prompts, which are added.
    """
    folder = Path(root) / FOLDER / file_name(model) / file_name(prompt_set) / f"seed_{seed}"
    chunks = []
    for batch in prompts.chunks(prompts_per_chunk):
        full = {**key, "seed": seed, "images_per_prompt": images_per_prompt, "prompts": digest_of(list(batch.texts))}
        name = f"{batch.offset:05d}-{batch.offset + len(batch) - 1:05d}"
        chunks.append(Chunk(folder / name, batch, images_per_prompt, full))
    return chunks


def file_name(name: str) -> str:
    """A name as a folder's: what file systems dislike becomes '_'."""
    return re.sub(r"[^\w.,=+-]+", "_", name)


def digest_of(value: Any) -> str:
    """Hex digest of plain values."""
    text = json.dumps(strict_json(value), sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def digests_of(rows: np.ndarray) -> list[str]:
    """Hex digest of each row of an array: its dtype, shape and content."""
    head = f"{rows.dtype.str}|{rows.shape[1:]}|".encode()
    return [hashlib.blake2b(head + np.ascontiguousarray(row).tobytes(), digest_size=12).hexdigest() for row in rows]


def _read(file: Path) -> dict[str, Any] | None:
    try:
        return from_strict_json(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}; remove its folder") from None


def _dump(record: Mapping[str, Any]) -> str:
    return json.dumps(strict_json(record), allow_nan=False, ensure_ascii=False) + "\n"
