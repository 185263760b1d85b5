"""The table of docs/results/speed.md."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    import speed

    return speed


def run(scores: list[float], method: str = "crd") -> dict[str, Any]:
    curve = {"eval_epoch": [0, 8, 16], "eval_score": scores}
    return {"method": method, "phase": "final", "curve": curve, "budget": {"images": 1600}}


def test_images_until_a_score_lie_on_a_straight_line(speed: ModuleType) -> None:
    assert speed.images_until(run([0.5, 0.6, 0.7]), 0.65) == pytest.approx(1200)
    assert speed.images_until(run([0.5, 0.6, 0.6]), 0.60) == pytest.approx(800)
    assert speed.images_until(run([0.5, 0.7, 0.6]), 0.60) == pytest.approx(400), "the first time"
    assert speed.images_until(run([0.5, 0.6, 0.64]), 0.65) is None


def test_the_page_tells_how_many_seeds_got_there(speed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "cost_of_image", lambda run: 20)
    page = speed.table("shapes_large", [run([0.5, 0.62, 0.7]), run([0.5, 0.58, 0.66]), run([0.5] * 3, "nft")])
    assert "| CRD | 2 | 20 | 28 | 32 (1 of 2) |" in page
    assert "| NFT | 1 | 20 | not reached | not reached |" in page
    assert "DGPO" not in page


def test_the_cost_of_an_image_is_what_its_configuration_takes(speed: ModuleType) -> None:
    base = ["experiment=shapes_demo"]  # 8 steps, 3 draws: reference, and policy with gradient
    assert speed.cost_of_image({"base": base, "overrides": []}) == 8 + 3 * 4
