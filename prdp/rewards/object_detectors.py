"""Detectors of transformers that find named objects in pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from prdp.rewards.geneval_rule import Detection
from prdp.rewards.transformers_models import load_pretrained
from prdp.rewards.weight_files import find_folder, model_files, read_json, read_tensors
from prdp.types import UInt8

FILES = (("*.safetensors", "*.json", "*.txt"), ("*.bin", "*.json", "*.txt"))
KINDS = {
    "mask2former": "Mask2FormerForUniversalSegmentation",
    "owlv2": "Owlv2ForObjectDetection",
    "owlvit": "OwlViTForObjectDetection",
}
"""`model_type` of a configuration -> class of transformers."""
LABELS = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
"""Names of COCO's classes -> those of GenEval, where they differ."""


class Detector(Protocol):
    """What finds objects."""

    def detect(self, image: UInt8, names: Sequence[str], least: float) -> Mapping[str, list[Detection]]:
        """Objects of these classes in a picture uint8 [H, W, 3], with more confidence than `least`."""
        ...

    def unknown(self, names: Sequence[str]) -> list[str]:
        """Names of objects that it cannot find."""
        ...


class Mask2Former:
    """A network that segments the instances of its own classes, as GenEval's authors use."""

    def __init__(self, model: Any, processor: Any, device: str) -> None:
        self._model, self._processor, self._device = model, processor, device
        self._names = {int(number): LABELS.get(name, name) for number, name in model.config.id2label.items()}

    def detect(self, image: UInt8, names: Sequence[str], least: float) -> Mapping[str, list[Detection]]:
        """See `Detector`; with masks, and boxes around them."""
        import torch

        inputs = self._processor(images=[image], return_tensors="pt").to(self._device)
        with torch.inference_mode():
            output = self._model(pixel_values=inputs["pixel_values"].to(self._model.dtype))
        [found] = self._processor.post_process_instance_segmentation(
            output, threshold=least, target_sizes=[image.shape[:2]], return_binary_maps=True
        )
        kept: dict[str, list[Detection]] = {}
        for number, segment in enumerate(found["segments_info"]):
            name = self._names[segment["label_id"]]
            if name in names:
                mask = found["segmentation"][number].cpu().numpy() > 0.5
                kept.setdefault(name, []).append(Detection(_box(mask), float(segment["score"]), mask))
        return kept

    def unknown(self, names: Sequence[str]) -> list[str]:
        """See `Detector`."""
        return [name for name in names if name not in self._names.values()]


class OwlDetector:
    """A network that finds whatever is named (OWL-ViT, OWLv2): boxes, no masks."""

    def __init__(self, model: Any, processor: Any, device: str) -> None:
        self._model, self._processor, self._device = model, processor, device

    def detect(self, image: UInt8, names: Sequence[str], least: float) -> Mapping[str, list[Detection]]:
        """See `Detector`; each object is asked for as 'a photo of a NAME'."""
        import torch

        texts = [[f"a photo of a {name}" for name in names]]
        length = self._model.config.text_config.max_position_embeddings
        padded = {"padding": "max_length", "max_length": length, "truncation": True}
        inputs = self._processor(text=texts, images=[image], return_tensors="pt", **padded).to(self._device)
        with torch.inference_mode():
            output = self._model(**inputs)
        [found] = self._processor.post_process_grounded_object_detection(
            output, threshold=least, target_sizes=[image.shape[:2]]
        )
        kept: dict[str, list[Detection]] = {}
        for box, score, label in zip(found["boxes"], found["scores"], found["labels"], strict=True):
            place = box.double().cpu().numpy()
            kept.setdefault(names[int(label)], []).append(Detection(place, float(score)))
        return kept

    def unknown(self, names: Sequence[str]) -> list[str]:
        """See `Detector`; none."""
        return []


def load_detector(key: str, path: str, device: str, dtype: str) -> tuple[Detector, list[Path]]:
    """The detector of a folder or the hub, and the files of its weights.

    Raises:
        ValueError: what `check_detector` raises; weights that do not fit the configuration.
    """
    import transformers

    folder = find_folder(key, path, FILES)
    assert folder is not None
    files, kind = model_files(key, folder), _kind(key, folder)
    auto = transformers.AutoImageProcessor if kind == "mask2former" else transformers.AutoProcessor
    model, processor = load_pretrained(
        f"{key}={path}", folder, getattr(transformers, KINDS[kind]), auto, device, dtype
    )
    return (Mask2Former if kind == "mask2former" else OwlDetector)(model, processor, device), files


def check_detector(key: str, path: str) -> None:
    """Check the files of a folder, or of a cached one of the hub, without loading them.

    Raises:
        ValueError: naming the file that is missing, damaged or of another kind of model.
    """
    folder = find_folder(key, path, FILES, fetch=False)
    if folder is None:
        return
    _kind(key, folder)
    for file in model_files(key, folder):
        read_tensors(key, file, shapes_only=True)


def _kind(key: str, folder: Path) -> str:
    kind = str(read_json(key, folder / "config.json").get("model_type"))
    if kind not in KINDS:
        raise ValueError(f"{key}: {folder} holds a '{kind}' model, must be one of {', '.join(KINDS)}")
    return kind


def _box(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)
