"""Whether two VAEs are one, whatever precision they are stored in."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from prdp.config import ModelConfig
from prdp.diffusion.latent_space import is_vae_of, vae_digest


def test_a_vae_stored_in_half_precision_is_that_of_its_export_in_float32(small_pipeline: Path, tmp_path: Path) -> None:
    models = {}
    tensors = load_file(small_pipeline / "vae" / "diffusion_pytorch_model.safetensors")
    versions = {
        "half": {name: value.half() for name, value in tensors.items()},
        "export": {name: value.half().float() for name, value in tensors.items()},
        "other": tensors,
    }
    for name, values in versions.items():
        folder = Path(shutil.copytree(small_pipeline, tmp_path / name))
        save_file(values, folder / "vae" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
        models[name] = ModelConfig(path=str(folder))
    digests = {name: vae_digest(model) for name, model in models.items()}
    assert len(set(digests.values())) == 3
    assert is_vae_of(digests["half"], models["export"]) and is_vae_of(digests["export"], models["half"])
    assert is_vae_of(digests["half"], models["half"])
    assert not is_vae_of(digests["other"], models["half"]) and not is_vae_of(digests["half"], models["other"])
