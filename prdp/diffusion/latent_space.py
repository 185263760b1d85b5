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


def is_vae_of(digest: str, model: ModelConfig) -> bool:
    """Whether a `vae_digest` is of a model's VAE, in whatever precision either was stored without a loss: exports of
    full weights are float32, and their base may be half precision.
    """
    known = model.family in FAMILIES and any(one.family == model.family for one in FORMATS)
    if digest == vae_digest(model) or not known:
        return digest == vae_digest(model)
    return digest in _in_other_precisions(model.path, model.variant, model.revision, model.family)


@cache
def _in_other_precisions(path: str, variant: str | None, revision: str | None, family: str) -> frozenset[str]:
    """The digests that a VAE would have if it were stored in another precision that holds its very values."""
    import torch
    from safetensors.torch import load_file

    folder = fetch_model(path, variant, revision, next(one for one in FORMATS if one.family == family))
    config = {name: value for name, value in read_component(folder, "vae").items() if not name.startswith("_")}
    tensors = {name: value for file in weight_files(folder, "vae", variant) for name, value in load_file(file).items()}
    found = set()
    for dtype, told in ((torch.float32, "F32"), (torch.float16, "F16"), (torch.bfloat16, "BF16")):
        cast = {name: value.to(dtype) for name, value in tensors.items()}
        if any(not torch.equal(cast[name].double(), value.double()) for name, value in tensors.items()):
            continue
        digest = hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=12)
        for name, value in sorted(cast.items()):
            content = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            digest.update(f"|{name}|{told} {list(value.shape)}|".encode())
            digest.update(hashlib.blake2b(content, digest_size=12).digest())
        found.add(digest.hexdigest())
    return frozenset(found)


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
