from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage

from prdp.worlds.shapes.corrupt import ATTRIBUTES, corrupt
from prdp.worlds.shapes.grammar import caption
from prdp.worlds.shapes.judge import SUB_SCORES, WEIGHTS, judge
from prdp.worlds.shapes.render import render
from prdp.worlds.shapes.reward import ShapesJudge
from prdp.worlds.shapes.scene import Obj, Scene
from prdp.worlds.shapes.split import SPLITS, scene_at

Image = NDArray[np.uint8]
COUNT = 250


@cache
def truths(split: str) -> list[tuple[Scene, Image]]:
    rng = np.random.default_rng(11)
    return [(scene, render(scene, rng)) for scene in (scene_at(split, i, seed=3) for i in range(COUNT))]


@cache
def of_truths(split: str) -> list[dict[str, float]]:
    """What the judge says of them."""
    return [judge(image, scene) for scene, image in truths(split)]


def degrade(image: Image, rng: np.random.Generator, blur: float, noise: float) -> Image:
    soft = ndimage.gaussian_filter(image.astype(np.float32), (blur, blur, 0)) + rng.normal(0, noise, image.shape)
    return np.clip(soft, 0, 255).astype(np.uint8)


def check_range(result: dict[str, float], scene: Scene) -> None:
    assert set(result) == {"score", *SUB_SCORES}
    for name, value in result.items():
        if name == "relation" and scene.relation is None:
            assert math.isnan(value)
        else:
            assert 0 <= value <= 1, name


@pytest.mark.parametrize("split", SPLITS)
def test_truth_scores_high(split: str) -> None:
    results = of_truths(split)
    for (scene, _), result in zip(truths(split), results, strict=True):
        check_range(result, scene)
    for name in ("score", *SUB_SCORES):
        assert np.nanmean([r[name] for r in results]) > 0.985, name
    assert min(r["score"] for r in results) > 0.93


@pytest.mark.parametrize("split", SPLITS)
def test_truth_scores_high_at_the_size_of_the_tiny_pipeline(split: str) -> None:
    rng = np.random.default_rng(12)
    scenes = [scene_at(split, i, seed=4) for i in range(COUNT)]
    assert np.mean([judge(render(scene, rng, image_size=32), scene)["score"] for scene in scenes]) > 0.98


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("blur", "noise"), [(1.0, 8.0), (1.3, 5.0)])
def test_blur_and_noise_cost_little(split: str, blur: float, noise: float) -> None:
    rng = np.random.default_rng(5)
    results = [judge(degrade(image, rng, blur, noise), scene) for scene, image in truths(split)]
    for name in ("score", *SUB_SCORES):
        assert np.nanmean([r[name] for r in results]) > 0.9, name
    assert np.mean([r["score"] < 0.85 for r in results]) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_one_wrong_attribute_lowers_its_sub_score(attribute: str) -> None:
    rng = np.random.default_rng(23)
    for split in SPLITS:
        for (scene, _), right in list(zip(truths(split), of_truths(split), strict=True))[:120]:
            if attribute == "relation" and scene.relation is None:
                continue
            changed = corrupt(scene, attribute, rng)
            wrong = judge(render(changed, rng), caption(scene))
            assert wrong[attribute] < right[attribute] - 0.25, (caption(scene), caption(changed))
            assert wrong["score"] < right["score"] - 0.015, (caption(scene), caption(changed))
            if attribute == "count":
                continue
            for name in SUB_SCORES:
                if name != attribute and not math.isnan(right[name]):
                    assert wrong[name] > right[name] - 0.25, (name, caption(scene), caption(changed))


def garbage() -> dict[str, Image]:
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:64, :64]
    found = {f"blank {v}": np.full((64, 64, 3), v, np.uint8) for v in (0, 8, 60, 128, 250, 255)}
    found["noise"] = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for sigma in (1, 3, 6):
        field = ndimage.gaussian_filter(rng.normal(size=(64, 64, 3)), (sigma, sigma, 0))
        found[f"clouds {sigma}"] = np.clip(128 + 60 * field / field.std(), 0, 255).astype(np.uint8)
    found["checkers"] = np.repeat(((x // 8 + y // 8) % 2 * 255)[..., None], 3, 2).astype(np.uint8)
    found["dots"] = np.repeat(np.where((x % 6 < 3) & (y % 6 < 3), 30, 250)[..., None], 3, 2).astype(np.uint8)
    found["slope"] = np.stack([x * 4, y * 4, 255 - x * 4], 2).astype(np.uint8)
    return found


@pytest.mark.parametrize("name", garbage())
def test_garbage_scores_low(name: str) -> None:
    image = garbage()[name]
    for scene, _ in truths("train")[:30]:
        result = judge(image, scene)
        check_range(result, scene)
        assert result["score"] < (0.1 if name.startswith("blank") else 0.2)


def test_more_objects_than_asked_never_pay() -> None:
    rng = np.random.default_rng(9)
    one = Scene((Obj("red", "circle", "large", "solid"),), None, "white")
    many = Scene(
        (*one.objects, Obj("blue", "star", "small", "solid"), Obj("green", "cross", "small", "solid")), "above", "white"
    )
    for _ in range(20):
        assert judge(render(many, rng), one)["count"] < 0.2
        assert judge(render(many, rng), one)["score"] < judge(render(one, rng), one)["score"] - 0.1


def test_a_color_between_two_scores_between() -> None:
    scene = Scene((Obj("red", "square", "large", "solid"),), None, "white")
    other = Scene((Obj("orange", "square", "large", "solid"),), None, "white")
    red, orange = (render(s, np.random.default_rng(1)).astype(float) for s in (scene, other))
    scores = [judge(((1 - t) * red + t * orange).astype(np.uint8), scene)["color"] for t in np.linspace(0, 1, 9)]
    assert scores[0] > 0.97
    assert scores[-1] < 0.03
    assert all(a >= b - 0.02 for a, b in pairwise(scores))
    assert sum(0.02 < s < 0.97 for s in scores) >= 1


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 90), st.integers(1, 90), st.just(3))),
    st.integers(0, 200),
)
def test_any_image_gives_finite_scores(image: Image, index: int) -> None:
    scene = scene_at("train", index)
    check_range(judge(image, scene), scene)


@pytest.mark.parametrize("image_size", [48, 128, 200])
def test_other_image_sizes(image_size: int) -> None:
    rng = np.random.default_rng(12)
    scores = [judge(render(scene, rng, image_size), scene)["score"] for scene, _ in truths("train")[:60]]
    assert np.mean(scores) > 0.95


def test_judge_is_pure() -> None:
    scene, image = truths("train")[0]
    before = image.copy()
    assert repr(judge(image, scene)) == repr(judge(image, caption(scene).upper()))
    assert np.array_equal(image, before)
    assert sum(WEIGHTS.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "image", [np.zeros((64, 64, 3)), np.zeros((64, 64), np.uint8), np.zeros((64, 64, 4), np.uint8), [[0]]]
)
def test_bad_images(image: object) -> None:
    with pytest.raises(ValueError, match="expected a uint8 array"):
        judge(image, scene_at("train", 0))


def test_reward_class() -> None:
    pairs = truths("heldout")[:20]
    images = np.stack([image for _, image in pairs])
    prompts = [caption(scene) for scene, _ in pairs]
    reward = ShapesJudge()
    rewards, subs = reward.score(images, prompts, [{}] * 20)
    assert rewards.shape == (20,)
    assert rewards.dtype == np.float64
    assert tuple(subs) == reward.sub_score_names
    assert all(values.shape == (20,) and values.dtype == np.float64 for values in subs.values())
    assert [math.isnan(v) for v in subs["relation"]] == [scene.relation is None for scene, _ in pairs]
    assert rewards == pytest.approx([judge(image, scene)["score"] for scene, image in pairs])
    with pytest.raises(ValueError, match=r"prompt 'a nice cat' is outside the grammar.*'nice'"):
        reward.score(images[:1], ["a nice cat"], [{}])
    with pytest.raises(ValueError, match="prompt 'a nice cat' is outside the grammar"):
        ShapesJudge.check_prompt("a nice cat", {})
    with pytest.raises(ValueError, match="20 images, 1 prompts"):
        reward.score(images, prompts[:1], [{}] * 20)
    with pytest.raises(ValueError, match="expected a uint8 array"):
        reward.score(images.astype(np.float32), prompts, [{}] * 20)
