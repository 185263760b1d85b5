"""`prdp export` of the transformer families: every format draws the run's picture in its own program."""

from __future__ import annotations

import inspect
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from diffusers.loaders import single_file_model, single_file_utils
from narrow_transformers import NARROW, TEXT_TOKENS
from narrow_xl import narrow_xl
from PIL import Image
from safetensors import safe_open
from test_xl_runs import run

from prdp.commands.export import export
from prdp.diffusion import original_names
from prdp.diffusion.original_layers import FLUX_LAYERS, original_tensors
from prdp.support.errors import ConfigError

KEYS = {
    "stable_diffusion_3": (
        "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",
        "first_stage_model.decoder.conv_in.weight",
        "text_encoders.clip_l.transformer.text_model.embeddings.position_embedding.weight",
        "text_encoders.clip_g.transformer.text_projection.weight",
        "text_encoders.t5xxl.transformer.shared.weight",
    ),
    "flux": (
        "model.diffusion_model.single_blocks.1.linear1.weight",
        "model.diffusion_model.double_blocks.0.img_attn.norm.query_norm.scale",
        "vae.decoder.conv_in.weight",
        "text_encoders.clip_l.transformer.text_model.embeddings.position_embedding.weight",
        "text_encoders.t5xxl.transformer.encoder.final_layer_norm.weight",
    ),
    "z_image": (
        "model.diffusion_model.layers.0.attention.qkv.weight",
        "model.diffusion_model.cap_embedder.1.weight",
        "model.diffusion_model.final_layer.linear.weight",
        "vae.decoder.conv_in.weight",
        "text_encoders.qwen3_4b.transformer.model.layers.0.self_attn.q_proj.weight",
    ),
}
"""That ComfyUI tells each family by, and looks for."""


@pytest.fixture(scope="module", params=NARROW)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """`model.family` and the folder of a run of LoRA."""
    place, family = tmp_path_factory.mktemp(request.param), request.param
    pipeline = NARROW[family]()
    if family == "stable_diffusion_3":
        with torch.no_grad():  # as in the released ones
            pipeline.text_encoder.text_projection.weight.copy_(torch.eye(8))
    pipeline.save_pretrained(place / "model")
    model = {"family": family, "max_sequence_length": TEXT_TOKENS[family], "height": 32, "width": 32}
    sampler = {"kind": "flow_sde", "eta": 0.7, "guidance_scale": 2.0, "deterministic_final_steps": 1}
    attention = "attention" if family == "z_image" else "attn"
    learner = {"lora_targets": [f"{attention}.to_q", f"{attention}.to_out.0"], "lora_alpha": 8, "learning_rate": 0.1}
    return family, run(place / "model", place / "run", epochs=1, model=model, sampler=sampler, learner=learner,
                       checkpoint={"every": 1})  # fmt: skip


def diffusers_at_the_width_of_the_tests(patches: pytest.MonkeyPatch) -> None:
    """Its converter of FLUX splits layers at the width of the released one, which is written in it."""
    name = "convert_flux_transformer_checkpoint_to_diffusers"
    source = inspect.getsource(getattr(single_file_utils, name))
    assert "inner_dim = 3072" in source
    names = dict(vars(single_file_utils))
    exec(source.replace("inner_dim = 3072", "inner_dim = 32"), names)
    loader: Any = single_file_model.SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
    patches.setitem(loader, "checkpoint_mapping_fn", names[name])
    patches.setattr(original_names, "_FLUX_WIDTH", 32)


def drawn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The picture that the program of an export draws, in this process."""
    monkeypatch.chdir(folder)
    runpy.run_path(str(folder / "use_it.py"))
    return np.asarray(Image.open(folder / "picture.png").convert("RGB")).astype(int)


def test_every_format_draws_the_same_picture(
    trained: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, folder = trained
    if family == "flux":
        with pytest.raises(ConfigError, match=r"--format single_file: .*transformer: is 32 wide: diffusers reads"):
            export(folder, form="single_file", output=tmp_path / "narrow")
        diffusers_at_the_width_of_the_tests(monkeypatch)
    forms = ("diffusers", "peft", "merged", "single_file")
    pictures = {form: drawn(export(folder, form=form, output=tmp_path / form), monkeypatch) for form in forms}
    for form, picture in pictures.items():
        assert np.abs(picture - pictures["diffusers"]).max() <= 1, form
    with safe_open(tmp_path / "single_file" / "model.safetensors", "pt") as file:
        assert set(KEYS[family]) <= set(file.keys())


def test_kohyas_names(trained: tuple[str, Path], tmp_path: Path) -> None:
    """Of layers as the authors have them; a program only where diffusers reads these names."""
    family, folder = trained
    if family == "flux":
        with pytest.raises(ConfigError, match=r"blocks\.0\.attn\.to_q is 32 wide, and diffusers reads"):
            export(folder, form="kohya", output=tmp_path / "kohya")
        return
    place = export(folder, form="kohya", output=tmp_path / "kohya")
    with safe_open(place / "pytorch_lora_weights.safetensors", "pt") as file:
        names = {name.partition(".")[0] for name in file.keys()}  # noqa: SIM118
    block = {"stable_diffusion_3": "joint_blocks_0_x_block_attn_qkv", "z_image": "layers_0_attention_to_q"}[family]
    assert f"lora_unet_{block}" in names
    assert (place / "use_it.py").exists() == (family != "stable_diffusion_3")
    if family == "stable_diffusion_3":
        assert "diffusers does not read kohya's names of Stable Diffusion 3" in (place / "README.md").read_text()


def test_flux_of_the_released_width_is_read_by_diffusers_as_it_stands() -> None:
    """Whole rows; a column of each layer is enough."""
    with torch.device("meta"):
        shapes = FluxTransformer2DModel(num_layers=2, num_single_layers=2, guidance_embeds=True).state_dict()
    state = {name: torch.randn(one.shape[0], *(1 for _ in one.shape[1:])) for name, one in shapes.items()}
    original = original_tensors(FLUX_LAYERS, state)
    found = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers(original)
    assert found.keys() == state.keys()
    assert all(found[name].equal(value) for name, value in state.items())


def test_what_diffusers_would_read_otherwise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="text_encoder: its text_projection is no identity"):
        original_names.save_single_file(NARROW["stable_diffusion_3"](), tmp_path / "model.safetensors")
    student = narrow_xl()
    config = {key: value for key, value in student.unet.config.items() if not key.startswith("_")}
    student.unet = UNet2DConditionModel(**{**config, "time_cond_proj_dim": 8})
    with pytest.raises(ValueError, match=r"unet: time_embedding\.cond_proj\.weight has no name in files of"):
        original_names.save_single_file(student, tmp_path / "model.safetensors")
    layers = [config["layers_per_block"]] * len(config["block_out_channels"])
    student.unet = UNet2DConditionModel(**{**config, "layers_per_block": layers})
    with pytest.raises(ValueError, match=rf"unet: layers_per_block={re.escape(str(layers))}: must be one number"):
        original_names.save_single_file(student, tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()
