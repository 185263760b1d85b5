"""The folder of a base that has learned to defer: its weights, the deferral row, who it was trained to ask."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prdp.language.models import DeferringModel, folder_digest, load_network, load_tokenizer
from prdp.language.settings import MODES, VARIANTS
from prdp.support.errors import StartError
from prdp.support.json_lines import load_json
from prdp.support.storage import load_tensors, save_tensors

MANIFEST = "collm.json"
THRESHOLD = "threshold.json"
BASELINES = "baselines.json"
_ROW = "deferral.safetensors"
_FORMAT = 1


@dataclass(frozen=True)
class CollmFolder:
    """A folder that `prdp collm train` wrote.

    Attributes:
        folder: of it.
        base: folder of the model that it started from.
        base_digest: of that model.
        mode: full: the folder has weights of its own; lora: an adapter; head: the row alone.
        assistant: how the assistant is reached, and its digest.
        tokenizer: digest of the tokenizer.
    """

    folder: Path
    base: str
    base_digest: str
    mode: str
    assistant: dict[str, Any]
    tokenizer: str

    @classmethod
    def open(cls, folder: Path) -> CollmFolder:
        """Read what a folder is; of its weights nothing.

        Raises:
            StartError: it is none, is damaged, or of another format.
        """
        file = folder / MANIFEST
        try:
            content = load_json(file.read_bytes())
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}, expected {_FORMAT}")
            names = ("base", "base_digest", "mode", "tokenizer")
            base, digest, mode, tokenizer = (str(content[name]) for name in names)
            if mode not in MODES:
                raise ValueError(f"mode {mode}, expected one of {', '.join(MODES)}")
            return cls(folder, base, digest, mode, dict(content["assistant"]), tokenizer)
        except FileNotFoundError:
            raise StartError(f"pair={folder}: there is no {MANIFEST}; `prdp collm train` writes one") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StartError(f"pair: {file} is damaged: {error}") from None

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer is."""
        return self.folder / "tokenizer"

    def variants(self) -> list[str]:
        """Those of `VARIANTS` that the folder has."""
        return [name for name in VARIANTS if (self.folder / name / _ROW).is_file()]

    def load(self, variant: str, device: str, dtype: str) -> DeferringModel:
        """One of the folder's models, ready to write.

        Raises:
            StartError: it is not there or damaged, or the base is another model than it was.
        """
        place = self.folder / variant
        tokenizer = load_tokenizer("pair", str(self.tokenizer_folder))
        try:
            row = {name: torch.from_numpy(value) for name, value in load_tensors(place / _ROW).items()}
            pair = row["weight"], row["bias"]
        except (OSError, ValueError, KeyError) as error:
            raise StartError(f"pair: {place / _ROW}: {error}") from None
        if (place / "config.json").is_file():
            network = load_network("pair", str(place), device, dtype)
        else:
            if folder_digest(self._base_folder()) != self.base_digest:
                raise StartError(f"pair={self.folder}: {self.base} is no longer the base that it was trained from")
            network = load_network("pair.base", self.base, device, dtype)
            if (place / "adapter_config.json").is_file():
                from peft import PeftModel

                network = PeftModel.from_pretrained(network, str(place)).eval()
        try:
            return DeferringModel(network, len(tokenizer), pair)
        except ValueError as error:
            raise StartError(f"pair={self.folder}: {error}") from None

    def digest(self, variant: str) -> str:
        """Of a model of the folder: 16 hex digits."""
        place = self.folder / variant
        parts = [self.base_digest, folder_digest(str(place)), self.tokenizer]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]

    def _base_folder(self) -> str:
        if not Path(self.base).is_dir():
            raise StartError(f"pair={self.folder}: its base {self.base} is not there any more")
        return self.base


def write_manifest(
    place: Path, base: str, mode: str, assistant: Mapping[str, Any], tokenizer: str, facts: Mapping[str, Any]
) -> None:
    """Write what `CollmFolder.open` reads.

    Args:
        facts: how the model came about, for people.
    """
    content = {
        "format": _FORMAT,
        "base": str(Path(base).resolve()),
        "base_digest": folder_digest(base),
        "mode": mode,
        "assistant": dict(assistant),
        "tokenizer": tokenizer,
        **facts,
    }
    (place / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_variant(place: Path, model: DeferringModel, mode: str) -> None:
    """Write a model into a folder that is made.

    Args:
        mode: full writes all weights, lora the adapter, head the row alone.
    """
    place.mkdir(parents=True)
    if mode != "head":
        model.network.save_pretrained(place, safe_serialization=True)
    weight = model.row.weight.detach().cpu().numpy()[0]
    bias = np.asarray(model.row.bias.detach().cpu().numpy()[0])
    save_tensors(place / _ROW, {"weight": weight, "bias": bias})
