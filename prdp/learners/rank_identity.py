"""What has to be the same in all processes of a learner, so that they come to the same weights."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import prdp
from prdp.learners.device_engine import DeviceEngine
from prdp.types import tensors_checksum

_VERSIONS = ("torch", "diffusers", "transformers", "peft", "jax", "numpy", "bitsandbytes", "prodigyopt")


def identity_of(engine: DeviceEngine, configuration: str) -> dict[str, str]:
    """Of a process, by what it is called in messages.

    Args:
        configuration: digest of what the engine was built from.
    """
    network: Any = engine.policy.weights.network
    tables = {
        field.name: np.asarray(getattr(engine.transitions, field.name))
        for field in dataclasses.fields(engine.transitions)
        if isinstance(getattr(engine.transitions, field.name), np.ndarray)
    }
    return {
        "prdp": prdp.__version__,
        "source of prdp": _source(),
        "Python": platform.python_version(),
        **{name: _version(name) for name in _VERSIONS},
        "device": engine.policy.device.type,
        "CPU threads": str(torch.get_num_threads()),
        "configuration": configuration,
        "engine": type(engine).__name__,
        "evidence": f"{engine.kind}: {', '.join(engine.channels)}",
        "microbatch": str(engine.microbatch),
        "precision": engine.precision,
        "precision of evidence": engine.evidence_precision,
        "sampler": tensors_checksum(tables),
        "network": fingerprint(network.state_dict()),
    }


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hex digest over names, shapes, dtypes and, per tensor, the sum of its bit patterns, computed where it lies.

    It tells tensors apart that have drifted, in one pass over them and without a copy to the host.
    """
    digest = hashlib.blake2b(digest_size=8)
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    for name, value in sorted(tensors.items()):
        bits = value.detach().contiguous()
        if value.dtype != torch.bool:
            bits = bits.view(integers[value.element_size()])
        total = int(bits.sum(dtype=torch.int64).item())
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|{total}".encode())
    return digest.hexdigest()


@cache
def _source() -> str:
    """Digest of the package's files: checkouts of one version may differ."""
    digest, folder = hashlib.blake2b(digest_size=8), Path(prdp.__file__).parent
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder).as_posix()}|".encode() + file.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
