"""The safety reward: its rule through a stand-in for nudenet, and the genuine detector where it is installed."""

from __future__ import annotations

import hashlib
import importlib.machinery
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from prdp.rewards import build_reward
from prdp.rewards.dependencies import MissingDependencyError
from prdp.rewards.safety import CLASSES, EXPOSED, Safety


@pytest.fixture
def nudenet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Installs a stand-in that finds, with the confidence red / 100, what green numbers."""

    class Detector:
        def __init__(self, path: str, inference_resolution: int) -> None:
            pass

        def detect(self, image: Any) -> list[dict[str, Any]]:
            corners = [image[0, 0], image[0, -1]]
            return [{"class": CLASSES[green], "score": red / 100, "box": [0] * 4} for _, green, red in corners if red]

    parts: dict[str, dict[str, Any]] = {
        "nudenet": {"NudeDetector": Detector, "__file__": str(tmp_path / "__init__.py")},
        "onnxruntime": {"SessionOptions": types.SimpleNamespace, "InferenceSession": lambda *_: None},
    }
    for name, content in parts.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("prdp.rewards.safety.version", lambda _: "3")
    (tmp_path / "320n.onnx").write_bytes(b"weights")


def shown(*found: tuple[str, int]) -> np.ndarray:
    """An image [2, 2, 3] in which the stand-in finds these classes, with confidences in percent."""
    image = np.zeros((2, 2, 3), np.uint8)
    for place, (name, percent) in enumerate(found):
        image[0, place] = (percent, CLASSES.index(name), 0)
    return image


def test_the_most_confident_of_the_classes_decides(nudenet: None) -> None:
    reward = Safety()
    images = np.stack(
        [
            shown(),
            shown(("BUTTOCKS_EXPOSED", 30), ("ANUS_EXPOSED", 80)),
            shown(("FACE_FEMALE", 90), ("FEMALE_BREAST_EXPOSED", 60)),
            shown(("FACE_MALE", 90), ("BELLY_EXPOSED", 60)),
        ]
    )
    values, parts = reward.score(images, [""] * 4, [{}] * 4)
    np.testing.assert_allclose(values, [1, 0.2, 0.4, 1])
    assert list(parts) == [name.lower() for name in EXPOSED] and all(one.dtype == np.float64 for one in parts.values())
    np.testing.assert_allclose(parts["buttocks_exposed"], [1, 0.7, 1, 1])
    np.testing.assert_allclose(Safety(["BELLY_EXPOSED", "FACE_MALE"]).score(images, [""] * 4, [{}] * 4)[0][3], 0.1)


def test_the_version_tells_package_weights_and_classes(nudenet: None, tmp_path: Path) -> None:
    known = Safety().version
    assert known.startswith(f"1-nudenet3-{hashlib.sha256(b'weights').hexdigest()[:12]}-")
    assert Safety(EXPOSED[::-1]).version == known
    (tmp_path / "640m.onnx").write_bytes(b"others")
    path = str(tmp_path / "640m.onnx")
    versions = [known, Safety(EXPOSED[:2]).version, Safety(path=path).version, Safety(path=path, size=640).version]
    assert len(set(versions)) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"classes": []}, "at least one"),
        ({"classes": ["BUTTOCKS"]}, "BUTTOCKS_EXPOSED"),
        ({"classes": ["HAT"]}, "these are FEMALE_BREAST_EXPOSED"),
        ({"path": "no.onnx"}, "path=no.onnx: there is no file"),
        ({"size": 100}, "size=100: must be a multiple of 32"),
    ],
)
def test_arguments_are_refused_by_name(nudenet: None, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Safety.check(**arguments)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"needs nudenet, which is not installed: pip install 'prdp\[saf"):
        Safety.check()


def portrait() -> Image.Image:
    """A face and a blouse, as a child draws them."""
    image = Image.new("RGB", (384, 384), (230, 230, 230))
    draw = ImageDraw.Draw(image)

    def oval(x: int, y: int, across: int, down: int, colour: tuple[int, int, int]) -> None:
        draw.ellipse((x - across, y - down, x + across, y + down), fill=colour)

    skin, hair = (225, 180, 150), (60, 40, 30)
    draw.polygon([(102, 200), (282, 200), (267, 384), (117, 384)], fill=(40, 60, 140))
    oval(192, 100, 62, 68, hair)
    oval(192, 110, 46, 58, skin)
    draw.rectangle((172, 155, 212, 200), fill=skin)
    for side in (-1, 1):
        oval(192 + side * 18, 102, 9, 5, (255, 255, 255))
        oval(192 + side * 18, 102, 4, 5, (40, 30, 30))
        draw.line((192 + side * 30, 90, 192 + side * 8, 90), fill=hair, width=3)
    draw.line((192, 105, 187, 125, 195, 125), fill=(180, 144, 120), width=3)
    oval(192, 142, 15, 5, (170, 60, 60))
    return image.filter(ImageFilter.GaussianBlur(1.5))


def test_the_genuine_detector(tmp_path: Path) -> None:
    nudenet = pytest.importorskip("nudenet")
    assert set(CLASSES) == set(vars(nudenet.nudenet)["__labels"])
    detector = nudenet.NudeDetector()
    picture = portrait()
    picture.save(tmp_path / "picture.png")
    found = {one["class"]: one["score"] for one in detector.detect(str(tmp_path / "picture.png"))}
    assert found["FACE_FEMALE"] > 0.25 and not found.keys() & set(EXPOSED)
    images = np.stack([np.asarray(picture), np.full((384, 384, 3), 90, np.uint8)])
    values, _ = build_reward({"_target_": "prdp.rewards.safety.Safety"}).score(images, [""] * 2, [{}] * 2)
    assert values.tolist() == [1, 1]
    of_faces = Safety(["FACE_FEMALE", "FACE_MALE"]).score(images, [""] * 2, [{}] * 2)
    assert of_faces[0][0] == pytest.approx(1 - found["FACE_FEMALE"], abs=1e-6) and of_faces[0][1] == 1
    (tmp_path / "bad.onnx").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"bad\.onnx cannot be read as ONNX"):
        Safety(path=str(tmp_path / "bad.onnx"))
