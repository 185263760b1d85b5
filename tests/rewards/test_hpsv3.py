"""HPSv3 on narrow random weights of its authors' layout, against what the authors' own code says of them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from narrow_hpsv3 import IMAGE, INSTRUCTION, REWARD, TEMPLATE, tensors, write_narrow_hpsv3
from safetensors.torch import save_file

from prdp.rewards.dependencies import MissingDependencyError, dependencies_elsewhere
from prdp.rewards.hpsv3 import HPSv3, InstructionTokens
from prdp.rewards.hpsv3_instruction import find_instruction
from prdp.rewards.prompt_tokens import load_tokenizer

PROMPTS = ["a red cat", "two dögs, №5", "", "x y" * 40]
NOTHING: list[dict[str, Any]] = [{}] * len(PROMPTS)
WIDE = [[1.1272788, -1.023741], [0.517522, -0.5457454], [1.3193239, -1.1100291], [1.0046326, -1.0049403]]
TALL = [[1.0553766, -1.1097237], [0.9593965, -1.1188892], [0.9719698, -0.6291423], [1.0184892, -0.969582]]
"""`HPSv3RewardInferencer.reward` of hpsv3 1.0.0 on transformers 4.45.2, the network cast to float32 after its cast to
bfloat16, on these weights, with this instruction, for `images` and for their first 21 columns with x and y swapped."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hpsv3")
    write_narrow_hpsv3(folder)
    return folder


def arguments(folder: Path) -> dict[str, Any]:
    files = {"path": "qwen2_vl", "weights": "HPSv3.safetensors", "instruction": "instruction.txt"}
    return {key: str(folder / name) for key, name in files.items()}


@pytest.fixture
def changed(folder: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Arguments for a copy of the folder in which a file of JSON has other values."""

    def change(file: str, **values: Any) -> dict[str, Any]:
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        content = json.loads((copy / file).read_text())
        (copy / file).write_text(json.dumps(content | values))
        return arguments(copy)

    return change


def test_both_outputs_are_those_of_the_authors_code(images: np.ndarray, folder: Path) -> None:
    HPSv3.check(**arguments(folder))
    reward = HPSv3(**arguments(folder), device="cpu", dtype="float32", batch_size=3)
    for pictures, expected in [(images, WIDE), (images.transpose(0, 2, 1, 3)[:, :, :21], TALL)]:
        scores, parts = reward.score(pictures, PROMPTS, NOTHING)
        np.testing.assert_allclose(np.stack([scores, np.log(parts["sigma"])], axis=1), expected, atol=1e-5)
    # Alone, a row has no padding.
    alone, _ = reward.score(images[2:3], PROMPTS[2:3], [{}])
    np.testing.assert_allclose(alone, WIDE[2][0], atol=1e-5)
    half = HPSv3(**arguments(folder), device="cpu")
    np.testing.assert_allclose(half.score(images[:1], PROMPTS[:1], [{}])[0], WIDE[0][0], atol=0.1)
    assert half.version.split("-")[0::2] == ["1", "bfloat16"] and half.version.split("-")[1] in reward.version


def test_another_instruction_is_another_version(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text(INSTRUCTION.replace("Judge", "Mark"))
    versions = {
        HPSv3(**arguments(folder) | {"instruction": str(file)}, device="cpu").version
        for file in (folder / "instruction.txt", tmp_path / "other.txt")
    }
    assert len(versions) == 2


def test_a_row_has_the_image_in_its_place_and_ends_with_the_rewards_token(folder: Path) -> None:
    tokenizer = load_tokenizer("path", str(folder / "qwen2_vl"), "Qwen2Tokenizer", REWARD + 1)
    tokens = InstructionTokens("path", tokenizer, TEMPLATE, INSTRUCTION, IMAGE, REWARD + 1)
    ids, last = tokens(["a cat", "cats"], image_tokens=3)
    before = "<|im_start|>system\nBe fair.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    image = len(tokenizer(before)["input_ids"])
    assert (ids == IMAGE).nonzero().tolist() == [[row, image + place] for row in (0, 1) for place in range(3)]
    rest = tokenizer.decode(ids[0, image + 3 : last[0] + 1])
    assert rest == "<|vision_end|>Judge a picture of a cat. {A brace}\nIts mark: <|Reward|>"
    assert last.tolist() == [ids.shape[1] - 1, ids.shape[1] - 2]
    assert ids[[0, 1], last].tolist() == [REWARD, REWARD]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"visual.merger.mlp.2.bias": None}, r"visual\.\*: .* lacks merger\.mlp\.2\.bias"),
        ({"model.layers.1.mlp.up_proj.weight": (2, 3)}, r"model\.\*: .* layers\.1\.mlp\.up_proj\.weight is \[2, 3\]"),
        ({"rm_head.3.bias": (4,)}, r"rm_head\.\*: .* 3\.bias is \[4\] instead of \[16\]"),
        ({"model.layers.2.mlp.up_proj.weight": (1,)}, r"has layers\.2\.mlp\.up_proj\.weight too many"),
        ({"vision.norm": (1,)}, r"vision\.norm belong to no part of HPSv3"),
        ({"rm_head.5.weight": None}, r"there is no rm_head\.5\.weight, so this is no HPSv3 checkpoint"),
        ({"model.embed_tokens.weight": (270, 32)}, r"has 263 tokens, <\|Reward\|> among them, .* 270 token embeddings"),
    ],
)
def test_checkpoints_of_other_models_are_refused(
    folder: Path, tmp_path: Path, changes: dict[str, tuple[int, ...] | None], message: str
) -> None:
    kept = {name: torch.from_numpy(value) for name, value in tensors().items() if changes.get(name, ()) is not None}
    save_file(
        kept | {name: torch.zeros(shape) for name, shape in changes.items() if shape}, tmp_path / "HPSv3.safetensors"
    )
    with pytest.raises(ValueError, match=message):
        HPSv3.check(**arguments(folder) | {"weights": str(tmp_path)})


def test_folders_of_other_models_are_refused(changed: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    for file, values, message in [
        ("qwen2_vl/config.json", {"model_type": "clip"}, "of a 'clip' model, expected 'qwen2_vl'"),
        ("qwen2_vl/config.json", {"image_token_id": 7}, r"is token 261 of the tokenizer, .* image_token_id=7"),
        ("qwen2_vl/chat_template.json", {"chat_template": "{{ messages[0].role }}"}, "shows 0 images"),
        ("qwen2_vl/chat_template.json", {"chat_template": None}, "has no chat template"),
    ]:
        with pytest.raises(ValueError, match=message):
            HPSv3.check(**changed(file, **values))
        shutil.rmtree(tmp_path / "copy")


def test_what_cannot_be_scored_is_refused() -> None:
    HPSv3.check_prompt("a {brace} <|im_end|>", {})
    for token in ("<|Reward|>", "<|image_pad|>"):
        with pytest.raises(ValueError, match="must find once"):
            HPSv3.check_prompt(f"a {token}", {})
    HPSv3.check_size(20, 4000)
    with pytest.raises(ValueError, match="20 x 4001 pixels"):
        HPSv3.check_size(20, 4001)


def test_the_instruction_is_read_from_the_authors_package_without_running_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not (Path(entry) / "hpsv3").is_dir()])
    with pytest.raises(MissingDependencyError, match=r"pip install --no-deps hpsv3==1\.0\.0"):
        find_instruction(None)
    with dependencies_elsewhere():
        assert find_instruction(None) is None
    package = tmp_path / "hpsv3"
    (package / "dataset").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('was run')\n")
    file = package / "dataset" / "data_collator_qwen.py"
    after = 'prompt_with_special_token = "{}<|Reward|>"'
    file.write_text(f'import torchvision\nINSTRUCTION = "{{text_prompt}}, {{{{}}}}"\n{after}')
    monkeypatch.syspath_prepend(str(tmp_path))
    text = find_instruction(None)
    assert text is not None and text.format(text_prompt="a {cat}") == "a {cat}, {}{}<|Reward|>"
    file.write_text('INSTRUCTION = "{text_prompt}"')
    with pytest.raises(ValueError, match=r"data_collator_qwen\.py\): has no text prompt_with_special_token"):
        find_instruction(None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a <|Reward|>", r"has the places none, must have \{text_prompt\} alone"),
        ("{text_prompt} {x} <|Reward|>", r"has the places \{text_prompt\}, \{x\}"),
        ("{text_prompt} { <|Reward|>", "is no format string"),
        ("{text_prompt}", r"has <\|Reward\|> 0 times"),
        ("{text_prompt} <|Reward|> <|image_pad|>", r"has <\|Reward\|> 1 times and <\|image_pad\|> 1 times"),
    ],
)
def test_instructions_without_a_place_for_prompt_or_score_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"instruction=.*mine\.txt: {message}"):
        find_instruction(str(tmp_path / "mine.txt"))
