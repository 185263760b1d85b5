"""Which latents are of one space: those of one VAE, whatever pipeline it came with."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

from prdp.config import FAMILIES, ModelConfig
from prdp.diffusion.model_folder import (
    check_model,
    fetch_model,
    is_single_file,
    model_location,
    read_component,
    weight_files,
)
from prdp.diffusion.pipeline_formats import FORMATS


def vae_digest(model: ModelConfig) -> str:
    """Changes with the tensors and settings of a model's VAE, and not with the files that hold them.

    Of a family whose latents no VAE of diffusers makes it tells the family and the model.
    """
    if model.family not in FAMILIES or all(one.family != model.family for one in FORMATS):
        return f"{model.family}:{model.path}"
    return _digest(model.path, model.variant, model.revision, model.family, model.config)


@cache
def _digest(path: str, variant: str | None, revision: str | None, family: str, settings: str | None) -> str:
    kind = next(one for one in FORMATS if one.family == family)
    if is_single_file(path):
        folder = check_model(path, variant, revision, kind, settings)
        assert folder is not None
        files = [Path(model_location(path))]
    else:
        folder = fetch_model(path, variant, revision, kind)
        files = weight_files(folder, "vae", variant)
    config = {name: value for name, value in read_component(folder, "vae").items() if not name.startswith("_")}
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=12)
    for name, facts, content in sorted(
        tensor for file in files for tensor in _tensors(file, "first_stage_model." if is_single_file(path) else "")
    ):
        digest.update(f"|{name}|{facts}|".encode())
        digest.update(content)
    return digest.hexdigest()


def _tensors(file: Path, prefix: str) -> list[tuple[str, str, bytes]]:
    """(name, dtype and shape, digest of the bytes) of the tensors of a safetensors file under a prefix."""
    found = []
    with open(file, "rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if not name.startswith(prefix):
                continue
            begin, end = entry["data_offsets"]
            opened.seek(8 + size + begin)
            content = hashlib.blake2b(opened.read(end - begin), digest_size=12).digest()
            found.append((name, f"{entry['dtype']} {entry['shape']}", content))
    return found
