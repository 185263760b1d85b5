"""Folders for others' scripts, read the way those scripts read them.

GenEval: evaluate_images.py takes numbered folders, json-loads metadata.jsonl as one object, and matches samples against
\\d+.png. HPSv2: evaluation.py opens <style>/<index>.jpg for every index of the style's list of prompts.
T2I-CompBench: its scripts sort the names by the number after the last '_', and take what stands before the first '_'
for the prompt.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from evaluation_folders import batch, rollout_of
from PIL import Image

from prdp.evaluation.exports import check_export, export
from prdp.evaluation.store import Chunk, chunks_of
from prdp.support.errors import ConfigError
from prdp.types import PromptBatch


def stored(folder: Path, prompts: PromptBatch, images_per_prompt: int = 2) -> list[Chunk]:
    """Images of two seeds, every picture in a grey of its own: 20 * prompt + 4 * seed + image."""
    chunks = []
    for seed in (0, 1):
        for chunk in chunks_of(folder, "model", "set", seed, prompts, 2, images_per_prompt, {}):
            levels = [
                20 * (chunk.prompts.offset + prompt) + 4 * seed + image
                for prompt in range(len(chunk.prompts))
                for image in range(images_per_prompt)
            ]
            images = np.array(levels, np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
            chunk.save(rollout_of(chunk.prompts, images, images_per_prompt))
            chunks.append(chunk)
    return chunks


def level(path: Path, kind: str = "PNG") -> int:
    with Image.open(path) as image:
        assert image.format == kind
        return int(np.asarray(image)[0, 0, 0])


def test_geneval(tmp_path: Path) -> None:
    metadata = [
        {"tag": "single_object", "include": [{"class": "cat", "count": 1}]},
        {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "exclude": []},
        {"tag": "counting", "include": [{"class": "bus", "count": 3}]},
    ]
    prompts = batch(["a photo of a cat", "a photo of a red dog", "a photo of three buses"], metadata)
    # Drawn in another order than the benchmark's; the folders carry the benchmark's numbers.
    order = (2, 0, 1)
    shuffled = PromptBatch(
        0, 0, tuple(prompts.texts[i] for i in order), tuple(prompts.metadata[i] for i in order), order
    )
    check_export("geneval", "set", shuffled)
    folder = export("geneval", tmp_path / "out", stored(tmp_path, shuffled))
    assert sorted(one.name for one in folder.iterdir()) == ["00000", "00001", "00002"]
    for number, name in enumerate(sorted(one.name for one in folder.iterdir())):
        assert name.isdigit()
        found = json.loads((folder / name / "metadata.jsonl").read_text())
        assert found == {**metadata[number], "prompt": prompts.texts[number]}
        samples = sorted(one.name for one in (folder / name / "samples").iterdir())
        assert samples == ["0000.png", "0001.png", "0002.png", "0003.png"]
        assert all(re.match(r"\d+\.png", one) for one in samples)
        place = order.index(number)
        assert [level(folder / name / "samples" / one) for one in samples] == [20 * place + i for i in (0, 1, 4, 5)]


def test_hpsv2(tmp_path: Path) -> None:
    prompts = batch(
        ["p0", "a0", "p1", "c0", "w0"],
        [{"category": name} for name in ("photo", "anime", "photo", "concept-art", "paintings")],
    )
    check_export("hpsv2", "set", prompts)
    folder = export("hpsv2", tmp_path / "out", stored(tmp_path, prompts))
    assert sorted(one.name for one in folder.iterdir()) == ["anime", "concept-art", "paintings", "photo"]
    expected = {"photo": [0, 40], "anime": [20], "concept-art": [60], "paintings": [80]}
    for style, levels in expected.items():
        found = [folder / style / f"{index:05d}.jpg" for index in range(len(levels))]
        assert sorted((folder / style).iterdir()) == found
        np.testing.assert_allclose([level(one, "JPEG") for one in found], levels, atol=2)


def test_t2i_compbench(tmp_path: Path) -> None:
    texts = ["a green bench and a blue bowl", "a cat on the left of a dog"]
    check_export("t2i_compbench", "set", batch(texts))
    folder = export("t2i_compbench", tmp_path / "out", stored(tmp_path, batch(texts)))
    names = sorted((one.name for one in (folder / "samples").iterdir()), key=lambda name: int(name[-10:-4]))
    assert names[0] == "a green bench and a blue bowl_000000.png"
    assert [name.split("_")[0] for name in names] == [texts[0]] * 4 + [texts[1]] * 4
    assert [int(name.split("_")[-1].split(".")[0]) for name in names] == list(range(8))


def test_t2i_compbench_has_a_folder_for_each_category(tmp_path: Path) -> None:
    prompts = batch(["a", "b", "c"], [{"category": name} for name in ("color_val", "shape_val", "color_val")])
    folder = export("t2i_compbench", tmp_path / "out", stored(tmp_path, prompts))
    found = {one.name: sorted(file.name for file in (one / "samples").iterdir()) for one in folder.iterdir()}
    of_colors = [f"{text}_{number:06d}.png" for number, text in enumerate("aaaacccc")]
    assert found == {"color_val": of_colors, "shape_val": [f"b_{number:06d}.png" for number in range(4)]}


@pytest.mark.parametrize(
    ("tool", "prompts", "says"),
    [
        ("geneval", batch(["a cat"], [{"tag": "colors"}]), r"'a cat' has no include in its metadata"),
        ("hpsv2", batch(["a cat"], [{"category": "cubism"}]), r"category 'cubism'.*one of anime, concept-art"),
        ("hpsv2", PromptBatch(0, 0, ("a",), ({"category": "photo"},), (5,)), "need the whole set"),
        ("t2i_compbench", batch(["a/b"]), "neither '_' nor '/'"),
        ("t2i_compbench", batch(["x" * 300]), "must be short"),
    ],
)
def test_what_the_scripts_could_not_read_is_refused(tool: str, prompts: PromptBatch, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_export(tool, "set", prompts)
