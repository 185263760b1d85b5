"""Models of transformers in folders, loaded whole or refused by key."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_pretrained(
    key: str, folder: Path, architecture: Any, processor: Any, device: str, dtype: str
) -> tuple[Any, Any]:
    """A model in evaluation mode and its processor; no code of the folder is run.

    Args:
        key: of the configuration, with its value, for messages.
        architecture, processor: classes of transformers.
        device, dtype: of the model.

    Raises:
        ValueError: files that cannot be loaded, or weights that do not fit the configuration.
    """
    import torch

    try:
        # Without the word about code that lies in the folder, transformers would ask on the terminal whether to run it.
        model, report = architecture.from_pretrained(
            folder, dtype=getattr(torch, dtype), output_loading_info=True, trust_remote_code=False
        )
        prepare = processor.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise ValueError(f"{key}: {folder} cannot be loaded: {error}") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{key}: {folder} lacks {len(missing)} tensors, {', '.join(missing[:4])} among them")
    return model.to(device).eval().requires_grad_(False), prepare
