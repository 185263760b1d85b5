"""Held-out evaluations as folders: a score for every image, pictures of the first prompts, a summary with intervals.

run_dir/evaluations/epoch_00010/scores.jsonl     a line per image
run_dir/evaluations/epoch_00010/summary.json     means with their intervals: overall, per sub-score, per category
run_dir/evaluations/epoch_00010/grid/003_1.png   second image of the fourth prompt
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prdp.support.json_lines import read_json_lines
from prdp.support.storage import atomic_directory
from prdp.tracking.jsonl import keep_aside
from prdp.tracking.statistics import mean_interval
from prdp.tracking.strict_json import dump, from_strict_json, strict_json
from prdp.types import Float64, Int64, PromptBatch, UInt8

FOLDER = "evaluations"
_NAME = re.compile(r"epoch_(\d+)")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation, read back; n images in prompt order.

    Attributes:
        folder: where it lies.
        epoch: epochs finished before it; 0 is the untouched start.
        prompt_index: int64 [n], position of each image's prompt in the held-out set.
        image_index: int64 [n], number of the image within its prompt's group.
        prompts, categories: per image [n]; an empty string where a prompt has no category.
        scores: float64 [n].
        sub_scores: name -> float64 [n], NaN where a sub-score does not apply.
        pictures: name -> float64 [n], statistics of the pictures; none in folders of versions without them.
        grid_prompts: number of prompts whose pictures were kept.
    """

    folder: Path
    epoch: int
    prompt_index: Int64
    image_index: Int64
    prompts: tuple[str, ...]
    categories: tuple[str, ...]
    scores: Float64
    sub_scores: Mapping[str, Float64]
    pictures: Mapping[str, Float64]
    grid_prompts: int

    def __len__(self) -> int:
        return len(self.scores)

    def summary(self, confidence: float = 0.95) -> dict[str, Any]:
        """{"score", "sub_scores": {name}, "categories": {name}} of {"mean", "low", "high", "images"}.

        Computed from the scores, so that its intervals are those of this version, whichever wrote the folder.
        """
        return _parts(self.scores, self.sub_scores, self.prompt_index, self.categories, confidence)

    def image_path(self, prompt: int, image: int) -> Path:
        """The picture of one image; prompts below `grid_prompts` have one."""
        return self.folder / "grid" / f"{prompt:03d}_{image}.png"


def save_evaluation(
    run_dir: Path,
    epoch: int,
    prompts: PromptBatch,
    images_per_prompt: int,
    rewards: Float64,
    sub_scores: Mapping[str, Float64],
    grid_images: UInt8,
    pictures: Mapping[str, Float64] | None = None,
    confidence: float = 0.95,
) -> dict[str, float]:
    """Write `run_dir/evaluations/epoch_<epoch>` as a whole, replacing an earlier one of the same epoch.

    Args:
        run_dir: the run folder.
        epoch: epochs finished; 0 before training.
        prompts: the held-out prompts; 'category' in a prompt's metadata sorts it into the table per category.
        images_per_prompt: images of each prompt; n = prompts * images_per_prompt, prompt-major.
        rewards: float64 [n].
        sub_scores: name -> float64 [n], NaN where one does not apply.
        grid_images: uint8 [g * images_per_prompt, H, W, 3], the images of the first g prompts.
        pictures: name -> float64 [n], statistics of the pictures, NaN where one does not apply.
        confidence: share of the intervals, whose independent units are the prompts.

    Returns:
        The metrics to log: eval/score, eval/score_low, eval/score_high, eval/<name> for each sub-score, and
        eval/pictures/<name> for each statistic.

    Raises:
        ValueError: shapes that do not fit, or no prompts.
        prdp.support.storage.StorageError: the disk is full; what was there before is untouched.
    """
    count = len(prompts) * images_per_prompt
    if not count:
        raise ValueError("an evaluation needs at least one prompt and one image per prompt")
    pictures = pictures or {}
    columns = {f"sub-score '{k}'": v for k, v in sub_scores.items()}
    columns |= {f"statistic '{k}' of pictures": v for k, v in pictures.items()}
    for name, values in {"rewards": rewards, **columns}.items():
        if np.shape(values) != (count,):
            raise ValueError(
                f"evaluation of epoch {epoch}: {name} has shape {np.shape(values)}, expected ({count},): "
                f"{len(prompts)} prompts with {images_per_prompt} images"
            )
    if grid_images.ndim != 4 or grid_images.dtype != np.uint8 or len(grid_images) % images_per_prompt:
        raise ValueError(
            f"grid_images are {grid_images.dtype} {grid_images.shape}, "
            f"expected uint8 [g * {images_per_prompt}, H, W, 3]"
        )
    if len(grid_images) > count:
        raise ValueError(f"{len(grid_images)} grid images, but the evaluation has only {count} images")
    summary = _summary(epoch, prompts, images_per_prompt, rewards, sub_scores, confidence)
    summary["grid_prompts"] = len(grid_images) // images_per_prompt
    with atomic_directory(Path(run_dir) / FOLDER / f"epoch_{epoch:05d}") as folder:
        with (folder / "scores.jsonl").open("w", encoding="utf-8") as file:
            for i in range(count):
                prompt, image = divmod(i, images_per_prompt)
                row = {
                    "prompt_index": prompt,
                    "prompt": prompts.texts[prompt],
                    "category": str(prompts.metadata[prompt].get("category", "")),
                    "image": image,
                    "score": float(rewards[i]),
                    "sub_scores": {name: float(values[i]) for name, values in sub_scores.items()},
                    "pictures": {name: float(values[i]) for name, values in pictures.items()},
                }
                file.write(dump(row))
        text = json.dumps(strict_json(summary), allow_nan=False, ensure_ascii=False, indent=2)
        (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
        _save_grid(folder / "grid", grid_images, images_per_prompt)

    metrics = {f"eval/{name}": part["mean"] for name, part in summary["sub_scores"].items()}
    metrics |= {f"eval/pictures/{name}": _mean(values) for name, values in pictures.items()}
    score = summary["score"]
    return {"eval/score": score["mean"], "eval/score_low": score["low"], "eval/score_high": score["high"], **metrics}


def list_evaluations(run_dir: Path) -> list[int]:
    """Epochs of the evaluations in a run folder, ascending; empty when there is none."""
    folder = Path(run_dir) / FOLDER
    if not folder.is_dir():
        return []
    matches = ((_NAME.fullmatch(entry.name), entry) for entry in folder.iterdir())
    return sorted(int(match[1]) for match, entry in matches if match and (entry / "summary.json").is_file())


def load_evaluation(run_dir: Path, epoch: int) -> Evaluation:
    """Read one evaluation back.

    Raises:
        FileNotFoundError: there is none of that epoch; names those that are.
        ValueError: its files are damaged, with the file and line.
    """
    folder = Path(run_dir) / FOLDER / f"epoch_{epoch:05d}"
    if not (folder / "summary.json").is_file():
        known = ", ".join(map(str, list_evaluations(run_dir))) or "none"
        raise FileNotFoundError(f"no evaluation of epoch {epoch} in {run_dir}; there are: {known}")
    return read_evaluation(folder, epoch)


def read_evaluation(folder: Path, epoch: int) -> Evaluation:
    """The evaluation in a folder of any name.

    Raises:
        FileNotFoundError: a file of it is missing.
        ValueError: its files are damaged, with the file and line.
    """
    rows = read_json_lines(folder / "scores.jsonl", _parsed)
    try:
        summary = from_strict_json(json.loads((folder / "summary.json").read_text(encoding="utf-8")))
        order = list(summary.get("sub_scores", {}))
        grid_prompts = int(summary.get("grid_prompts", 0))
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{folder / 'summary.json'} is damaged: {error}") from None
    found = {name for row in rows for name in row[5]}
    names = [name for name in order if name in found] + sorted(found.difference(order))
    statistics = dict.fromkeys(name for row in rows for name in row[6])
    return Evaluation(
        folder=folder,
        epoch=epoch,
        prompt_index=np.array([row[0] for row in rows], dtype=np.int64),
        image_index=np.array([row[1] for row in rows], dtype=np.int64),
        prompts=tuple(row[2] for row in rows),
        categories=tuple(row[3] for row in rows),
        scores=np.array([row[4] for row in rows], dtype=np.float64),
        sub_scores=_columns([row[5] for row in rows], names),
        pictures=_columns([row[6] for row in rows], statistics),
        grid_prompts=grid_prompts,
    )


def common_images(first: Evaluation, second: Evaluation) -> tuple[Int64, Int64]:
    """Positions in both evaluations of the images with the same prompt, place in the set and noise: int64 [m] twice."""
    places = {key: i for i, key in enumerate(image_keys(second))}
    pairs = [(i, places[key]) for i, key in enumerate(image_keys(first)) if key in places]
    return np.array([i for i, _ in pairs], dtype=np.int64), np.array([j for _, j in pairs], dtype=np.int64)


def image_keys(evaluation: Evaluation) -> list[tuple[int, int, str]]:
    """(place of the prompt, number of the image, prompt) of each image."""
    indices = zip(evaluation.prompt_index.tolist(), evaluation.image_index.tolist(), strict=True)
    return [(prompt, image, text) for (prompt, image), text in zip(indices, evaluation.prompts, strict=True)]


def _columns(rows: Sequence[Mapping[str, float]], names: Iterable[str]) -> dict[str, Float64]:
    return {name: np.array([row.get(name, np.nan) for row in rows], dtype=np.float64) for name in names}


def _mean(values: Float64) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else float("nan")


def _parsed(row: Any) -> tuple[int, int, str, str, float, Mapping[str, float], Mapping[str, float]]:
    """The columns of a line; of texts that read as numbers, such as the prompt 'NaN', none becomes one."""
    score = float(from_strict_json(row["score"]))
    sub_scores, pictures = (
        {name: float(value) for name, value in from_strict_json(part).items()}
        for part in (row["sub_scores"], row.get("pictures", {}))
    )
    place, image = np.array([row["prompt_index"], row["image"]], np.int64).tolist()
    return place, image, str(row["prompt"]), str(row["category"]), score, sub_scores, pictures


def clear_later_evaluations(run_dir: Path, resumed_epoch: int | None) -> None:
    """Make room for a run that starts, so that no evaluation of other weights is taken for one of its own.

    A resumed run's evaluations of more than `resumed_epoch` epochs go, since it will make them again; for a fresh run
    (None) those that an earlier run left are kept aside as `evaluations.1`.
    """
    folder = Path(run_dir) / FOLDER
    if resumed_epoch is None:
        keep_aside(folder)
        return
    for epoch in list_evaluations(run_dir):
        if epoch > resumed_epoch:
            shutil.rmtree(folder / f"epoch_{epoch:05d}")


def _summary(
    epoch: int,
    prompts: PromptBatch,
    images_per_prompt: int,
    rewards: Float64,
    sub_scores: Mapping[str, Float64],
    confidence: float,
) -> dict[str, Any]:
    groups = np.repeat(np.arange(len(prompts)), images_per_prompt)
    categories = [str(meta.get("category", "")) for meta in prompts.metadata for _ in range(images_per_prompt)]
    return {
        "epoch": epoch,
        "prompts": len(prompts),
        "images_per_prompt": images_per_prompt,
        "images": len(groups),
        "confidence": confidence,
        **_parts(rewards, sub_scores, groups, categories, confidence),
    }


def _parts(
    rewards: Float64, sub_scores: Mapping[str, Float64], groups: Int64, categories: Sequence[str], confidence: float
) -> dict[str, Any]:
    def part(values: Float64, chosen: Any = slice(None)) -> dict[str, Any]:
        mean, low, high = mean_interval(values[chosen], groups[chosen], confidence)
        return {"mean": mean, "low": low, "high": high, "images": int(np.sum(~np.isnan(values[chosen])))}

    return {
        "score": part(rewards),
        "sub_scores": {name: part(values) for name, values in sub_scores.items()},
        "categories": {
            name: part(rewards, np.array([category == name for category in categories]))
            for name in sorted(set(categories) - {""})
        },
    }


def _save_grid(folder: Path, images: UInt8, images_per_prompt: int) -> None:
    from PIL import Image

    folder.mkdir()
    for i, image in enumerate(images):
        prompt, number = divmod(i, images_per_prompt)
        Image.fromarray(image).save(folder / f"{prompt:03d}_{number}.png")
