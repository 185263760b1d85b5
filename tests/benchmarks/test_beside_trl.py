"""Words of `benchmarks/beside_trl.py`: what is doubled is doubled, and all systems do the same work."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import beside_trl

from prdp.config import TrainConfig


def work(config: TrainConfig) -> dict[str, float]:
    """What an epoch does of each thing that is doubled."""
    model = config.model
    assert model.height is not None and model.width is not None
    images = config.prompts_per_epoch * config.images_per_prompt
    return {
        "images": images,
        "steps": config.sampler.steps,
        "images a prompt": config.images_per_prompt,
        "pixels": model.height * model.width,
    }


@pytest.mark.parametrize("name", beside_trl.GROWTH)
def test_each_point_doubles_what_its_row_says(name: str) -> None:
    amounts = [work(beside_trl.settings([*beside_trl.size(8), *words]))[name] for words in beside_trl.GROWTH[name]]
    assert [amount / amounts[0] for amount in amounts] == [1, 2, 4]


def test_all_systems_draw_and_learn_from_as_many_images() -> None:
    for words in beside_trl.HERE.values():
        config = beside_trl.settings([*beside_trl.size(16), *words])
        assert math.prod((config.prompts_per_epoch, config.images_per_prompt)) == beside_trl.IMAGES
        assert (config.model.height, config.sampler.steps, config.learner.lora_rank) == (64, beside_trl.STEPS, 4)
