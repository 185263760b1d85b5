"""Pictures of one's own: how they are brought to a size and to latents, and a set of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from narrow_flow import narrow_pipeline
from PIL import Image
from set_folders import contents, entries, made

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.diffusion import build_policy
from prdp.image_sets.fitting import all_fitted, fitted
from prdp.image_sets.pictures import PictureFolder
from prdp.image_sets.reading import StoredPrompts
from prdp.image_sets.settings import GenerateConfig, check_generate
from prdp.image_sets.stored_sampler import build_stored_sampler
from prdp.prompts.stream import prompts_at
from prdp.support.errors import ConfigError, StartError
from prdp.support.storage import load_tensors
from prdp.types import UInt8


@pytest.fixture(scope="module")
def flow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flow")
    narrow_pipeline().save_pretrained(folder)
    return folder


def noise(*shape: int) -> UInt8:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("family", ["stable_diffusion", "stable_diffusion_3"])
def test_pictures_are_encoded_as_diffusers_encodes_them(family: str, small_pipeline: Path, flow_folder: Path) -> None:
    """Its image-to-image pipelines take a sample; the mean is what `sample_mode="argmax"` is for."""
    from diffusers.image_processor import VaeImageProcessor
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents

    folder, side = (small_pipeline, 8) if family == "stable_diffusion" else (flow_folder, 32)
    model = ModelConfig(family=family, path=str(folder))
    policy: Any = build_policy(model, LearnerConfig(mode="frozen"), seed=0, keep_reference=False)
    images = noise(2, side, side)
    found = policy.encode_images(images)
    vae = policy.pipeline.vae
    with torch.no_grad():
        seen = VaeImageProcessor().preprocess([Image.fromarray(one) for one in images])
        mean = retrieve_latents(vae.encode(seen), sample_mode="argmax")
    expected = (mean - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
    assert found.dtype == torch.float32 and found.shape == (2, *policy.latent_shape)
    torch.testing.assert_close(found, expected)
    policy.pipeline.vae.to(torch.bfloat16)
    assert policy.encode_images(images).dtype == torch.float32
    assert policy.pipeline.vae.dtype == torch.bfloat16


def test_the_embedded_autoencoder_gives_pictures_back() -> None:
    from prdp.worlds.shapes.pretrain_vae import training_images

    policy: Any = build_policy(ModelConfig(), LearnerConfig(mode="frozen"), seed=0, keep_reference=False)
    images = training_images(0, 0, 3)
    again = policy.decode(policy.encode_images(images))
    assert np.abs(again.astype(int) - images).mean() < 6


def test_pictures_are_scaled_to_cover_and_cut_in_the_middle() -> None:
    wide = noise(4, 8)
    np.testing.assert_array_equal(fitted(Image.fromarray(wide), (4, 4)), wide[:, 2:6])
    np.testing.assert_array_equal(fitted(Image.fromarray(wide), (4, 8)), wide)
    flat = np.full((4, 6, 3), 77, np.uint8)
    assert fitted(Image.fromarray(flat), (8, 16)).shape == (8, 16, 3)
    assert (all_fitted(flat[None], (8, 8)) == 77).all()
    expected = np.asarray(Image.fromarray(wide).resize((4, 2), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(fitted(Image.fromarray(wide), (2, 4)), expected)


def test_orientation_and_transparency_are_what_people_see(tmp_path: Path) -> None:
    picture = Image.fromarray(noise(4, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter, clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        np.testing.assert_array_equal(fitted(opened, (8, 4)), np.rot90(np.asarray(picture), -1))
    clear = np.zeros((2, 2, 4), np.uint8)
    clear[0, 0] = (10, 20, 30, 255)
    seen = fitted(Image.fromarray(clear, "RGBA"), (2, 2))
    assert seen[0, 0].tolist() == [10, 20, 30] and seen[1, 1].tolist() == [255] * 3


def own_pictures(folder: Path) -> Path:
    folder.mkdir()
    Image.fromarray(noise(8, 8)).save(folder / "b.png")
    Image.fromarray(noise(12, 16)).save(folder / "a.png")
    lines = [
        {"file_name": "b.png", "text": "second", "skill": "style"},
        {"file_name": "a.png", "text": "first", "source": "mine"},
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_folder_of_pictures_is_a_set(
    small_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = own_pictures(tmp_path / "mine")
    words = (f"pictures={pictures}", "rewards=[redness]", "sampler.prompts_per_chunk=1")
    folder = made(tmp_path / "set", small_pipeline, small=words)
    manifest = json.loads((folder / "set.json").read_text())
    assert manifest["sampler"] is None and manifest["images_per_prompt"] == 1
    assert manifest["model"]["kind"] == "pictures" and manifest["picture_size"] == [8, 8]
    found = StoredPrompts([str(folder)])
    assert [found[0], found[1]] == [("first", {"source": "mine"}), ("second", {"skill": "style"})]
    assert len(StoredPrompts([str(folder)], "style")) == len(StoredPrompts([str(folder)], "mine")) == 1
    np.testing.assert_array_equal(found.images(1, 1)[0], noise(8, 8))
    with Image.open(pictures / "a.png") as opened:
        np.testing.assert_array_equal(found.images(0, 1)[0], fitted(opened, (8, 8)))
    model = ModelConfig(path=str(small_pipeline))
    policy: Any = build_policy(model, LearnerConfig(mode="frozen"), seed=0, keep_reference=False)
    for index in range(2):
        expected = policy.encode_images(found.images(index, 1)).numpy()
        np.testing.assert_array_equal(found.latents(index, 1), expected)
    before = contents(folder)
    made(folder, small_pipeline, small=words)
    assert contents(folder) == before
    assert "enlarged" not in capsys.readouterr().out
    Image.fromarray(noise(8, 8) ^ 1).save(pictures / "b.png")
    with pytest.raises(ConfigError, match="made otherwise; these differ: pictures;"):
        made(folder, small_pipeline, small=words)


def test_captions_may_stand_beside_pictures_and_small_ones_are_told(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, size in (("z.jpg", (9, 20)), ("in/a.webp", (16, 16))):
        Image.fromarray(noise(*size)).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f" caption of {name}\n")
    found = PictureFolder(str(tmp_path))
    assert [found[0][0], found[1][0]] == ["caption of in/a.webp", "caption of z.jpg"]
    assert found.note((9, 9)) == ""
    assert found.note((10, 10)).startswith("1 of 2 pictures are smaller than 10 x 10 and are enlarged; the first is ")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("z.txt", None, r"z\.png has no caption: write it into z\.txt beside it"),
        ("z.txt", "  \n", r"z\.txt: the caption is empty"),
        ("z.png", "no picture", r"z\.png is not a whole picture: it begins as no PNG or JPEG or WEBP does"),
        ("metadata.jsonl", '{"file_name": "y.png", "text": "a"}', r"line 1: file_name=y\.png: there is no such"),
        ("metadata.jsonl", '{"file_name": "../z.png", "text": "a"}', r"must lie in"),
        ("metadata.jsonl", '{"text": "a"}', "expected an object with file_name"),
        ("metadata.jsonl", '{"file_name": "z.png", "words": "a"}', "prompt_column must name"),
    ],
)
def test_folders_that_are_no_pictures_with_captions_are_refused_by_the_file(
    name: str, content: str | None, told: str, tmp_path: Path
) -> None:
    Image.fromarray(noise(8, 8)).save(tmp_path / "z.png")
    (tmp_path / "z.txt").write_text("a caption")
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=told):
        PictureFolder(str(tmp_path))


def test_mistakes_beside_pictures_are_refused(small_pipeline: Path, tmp_path: Path) -> None:
    changes: list[tuple[dict[str, Any], str]] = [
        ({"models": ["base"]}, "models: must not be given beside pictures="),
        ({"prompts": {"shapes": {}}}, "prompts: must not be given beside pictures="),
        ({"images_per_prompt": 2}, "images_per_prompt=2: must be 1 beside pictures="),
    ]
    for change, told in changes:
        config = GenerateConfig(**{"pictures": "mine", "images_per_prompt": 1, "output_dir": "set", **change})
        with pytest.raises(ConfigError, match=told):
            check_generate(config)
    with pytest.raises(StartError, match="pictures: there is no folder"):
        made(tmp_path / "set", small_pipeline, small=(f"pictures={tmp_path}/nothing",))


def test_images_of_a_weak_model_teach_a_strong_one(base_set: Path, flow_folder: Path) -> None:
    """From 8 x 8 pixels of a UNet's set to 32 x 32 of a flow model, whose VAE and text encoders are its own."""
    model = ModelConfig(family="stable_diffusion_3", path=str(flow_folder))
    sampler = SamplerConfig(kind="euler", steps=2, guidance_scale=1.0, microbatch=1)
    built = build_stored_sampler(model, LearnerConfig(lora_rank=2), sampler, 0, [str(base_set)], None, encode=True)
    prompts = StoredPrompts([str(base_set)])
    rollout = built.sample(prompts_at(prompts, [2, 0], 5), 1, seed=0)
    assert rollout.images.shape == (2, 8, 8, 3) and rollout.rewards is None
    np.testing.assert_array_equal(rollout.images[1], prompts.images(0, 1)[0])
    policy: Any = built._policy
    for row in range(2):
        expected = policy.encode_images(all_fitted(rollout.images[row : row + 1], (32, 32))).numpy()
        np.testing.assert_array_equal(rollout.stored["final_latents"][row : row + 1], expected)
    states = policy.encode([prompts[2][0], prompts[0][0]]).fields["states"].numpy()
    np.testing.assert_array_equal(rollout.conditions["states"], states)
    assert built.sample(prompts_at(prompts, [0], 0), 1, seed=0, trajectory=False).images.shape == (1, 32, 32, 3)


def test_stored_latents_are_those_of_the_file(base_set: Path) -> None:
    one = entries(base_set)[3]
    stored = load_tensors(base_set / one["chunk"] / "latents.safetensors")["final_latents"]
    np.testing.assert_array_equal(StoredPrompts([str(base_set)]).latents(3, 2), stored)
