"""A model folder that is missing or half-written is found out at start."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prdp.diffusion import model_folder as module
from prdp.diffusion.model_folder import check_model, weight_files
from prdp.support.errors import StartError

WEIGHTS = "diffusion_pytorch_model.safetensors"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def rename_to_variant(folder: Path) -> None:
    for file in folder.glob("*/*.safetensors"):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))


def take_from(name: str, library: str, kind: str) -> Callable[[Path], None]:
    """Write another origin of a component into the index."""

    def write(folder: Path) -> None:
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps({**index, name: [library, kind]}))

    return write


BROKEN: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no index": (lambda f: (f / "model_index.json").unlink(), ["model_index.json is missing"]),
    "half an index": (lambda f: cut(f / "model_index.json"), ["model_index.json", "half-written"]),
    "another index": (lambda f: (f / "model_index.json").write_text("[]"), ["JSON object"]),
    "no unet named": (lambda f: (f / "model_index.json").write_text("{}"), ["names no unet"]),
    "code of its own": (take_from("unet", "my_unet", "UNet2DConditionModel"), ["takes unet from my_unet", "never run"]),
    "any module": (take_from("feature_extractor", "os", "system"), ["takes feature_extractor from os system"]),
    "an Auto class": (take_from("tokenizer", "transformers", "AutoTokenizer"), ["transformers AutoTokenizer"]),
    "no tokenizer": (lambda f: (f / "tokenizer").rename(f / "elsewhere"), ["no folder tokenizer/"]),
    "no unet config": (lambda f: (f / "unet" / "config.json").unlink(), ["unet/config.json is missing"]),
    "no vae weights": (lambda f: (f / "vae" / WEIGHTS).unlink(), ["vae holds no weights"]),
    "half the unet": (lambda f: cut(f / "unet" / WEIGHTS), [f"unet/{WEIGHTS}", "half-written"]),
    "text as weights": (lambda f: (f / "vae" / WEIGHTS).write_text("weights"), [f"vae/{WEIGHTS}"]),
    "empty weights": (lambda f: (f / "vae" / WEIGHTS).write_bytes(b""), ["is empty"]),
}


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("config.json", '{"_class_name": "ControlNetModel"}', "of a whole pipeline, and this one has a ControlNet"),
        ("adapter_config.json", "{}", "and this one has a LoRA, which model.adapters takes"),
        ("pytorch_lora_weights.safetensors", "", "and this one has a LoRA, which model.adapters takes"),
    ],
)
def test_what_is_no_pipeline_is_told(tmp_path: Path, file: str, content: str, told: str) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(StartError, match=f"model_index.json is missing; expected a folder in diffusers format.*{told}"):
        check_model(str(tmp_path))


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_are_named(model_folder: Path, name: str) -> None:
    check_model(str(model_folder))
    harm, says = BROKEN[name]
    harm(model_folder)
    with pytest.raises(StartError) as caught:
        check_model(str(model_folder))
    for text in [f"model.path={model_folder}", *says]:
        assert text in str(caught.value)


def test_variant(model_folder: Path) -> None:
    with pytest.raises(StartError, match="no weights of variant 'fp16'"):
        check_model(str(model_folder), "fp16")
    rename_to_variant(model_folder)
    check_model(str(model_folder), "fp16")
    plain = model_folder / "vae" / WEIGHTS
    plain.with_name("diffusion_pytorch_model.fp16.safetensors").rename(plain)
    check_model(str(model_folder), "fp16")  # a part without the variant is taken as it is, as diffusers does
    assert weight_files(model_folder, "vae", "fp16") == [plain]
    with pytest.raises(StartError, match=r"unet holds no weights .*: set model\.variant=fp16"):
        check_model(str(model_folder))


def test_not_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    file.write_text(json.dumps({}))
    with pytest.raises(StartError, match=r"model\.ckpt: is pickled and never read here"):
        check_model(str(file))
    with pytest.raises(StartError, match="there is no folder"):
        check_model(str(tmp_path / "nowhere"))
    with pytest.raises(StartError, match="not in the local cache"):
        check_model("nobody/no-such-model")


def test_embedded_pipeline_goes_through_the_same_checks(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.EMBEDDED_FOLDERS, "shapes", model_folder)
    check_model("shapes")
    cut(model_folder / "unet" / WEIGHTS)
    with pytest.raises(StartError, match=r"model\.path=shapes"):
        check_model("shapes")
