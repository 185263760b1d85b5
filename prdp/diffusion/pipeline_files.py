"""Whole pipelines as folders of diffusers: written so that they load without arguments, and read back to prove it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def save_pipeline(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Write a pipeline in diffusers format, whatever the precision that its parts are in.

    Loaded without a dtype, diffusers takes float32 for its own networks, and transformers the dtype that the text
    encoder's config.json names: that of the stored weights, with which the pipeline then fails at its first step. The
    written config.json names float32, which `dtype=` overrides as ever.
    """
    pipeline.save_pretrained(folder, safe_serialization=True)
    for file in folder.glob("text_encoder*/config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        config["dtype"] = "float32"
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_network(folder: Path, learned: Mapping[str, torch.Tensor]) -> None:
    """Compare the stored weights of a network with those that were learned.

    Args:
        folder: of the network, such as <pipeline>/unet.
        learned: name -> tensor, on any device.

    Raises:
        ValueError: names a tensor that is not there, or with another value.
    """
    from safetensors import safe_open

    missing, changed = set(learned), []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in missing.intersection(stored.keys()):
                missing.remove(name)
                if not torch.equal(stored.get_tensor(name), learned[name].detach().to("cpu")):
                    changed.append(name)
    if missing or changed:
        raise ValueError(
            f"{folder}: of the {len(learned)} tensors that were learned {len(missing)} were not stored, and "
            f"{len(changed)} with another value; first: {sorted(missing or changed)[0]}"
        )
