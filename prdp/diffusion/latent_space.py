"""Which latents are of one space: those of one VAE, whatever pipeline it came with."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

from prdp.config import FAMILIES, ModelConfig
from prdp.diffusion.model_folder import fetch_model, read_component, weight_files
from prdp.diffusion.pipeline_formats import FORMATS


def vae_digest(model: ModelConfig) -> str:
    """Changes with the tensors and settings of a model's VAE, and not with the files that hold them.

    Of a family whose latents no VAE of diffusers makes it tells the family and the model.
    """
    if model.family not in FAMILIES or all(one.family != model.family for one in FORMATS):
        return f"{model.family}:{model.path}"
    return _digest(model.path, model.variant, model.revision, model.family)


@cache
def _digest(path: str, variant: str | None, revision: str | None, family: str) -> str:
    folder = fetch_model(path, variant, revision, next(one for one in FORMATS if one.family == family))
    config = {name: value for name, value in read_component(folder, "vae").items() if not name.startswith("_")}
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=12)
    for name, facts, content in sorted(
        tensor for file in weight_files(folder, "vae", variant) for tensor in _tensors(file)
    ):
        digest.update(f"|{name}|{facts}|".encode())
        digest.update(content)
    return digest.hexdigest()


def _tensors(file: Path) -> list[tuple[str, str, bytes]]:
    """(name, dtype and shape, digest of the bytes) of every tensor of a safetensors file."""
    found = []
    with open(file, "rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            opened.seek(8 + size + begin)
            content = hashlib.blake2b(opened.read(end - begin), digest_size=12).digest()
            found.append((name, f"{entry['dtype']} {entry['shape']}", content))
    return found
