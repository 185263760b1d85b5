"""The recipes of docs/objectives compose, fit together and ask for what the text says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from composing import compose

from prdp.configuration.bounds import check_bounds, objective_problems
from prdp.diffusion.rectified_flow import flow_transitions
from prdp.diffusion.windows import trained, windows

PAGES = Path(__file__).parents[2] / "docs" / "objectives"
RECIPES = re.findall(r"^prdp train (experiment=shapes_flow .*)$", (PAGES / "grpo.md").read_text(), re.MULTILINE)
EPOCHS = (0, 24, 25, 50)
NAMES = ("flow_grpo", "flow_grpo_fast", "mix_grpo", "dance_grpo")


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_the_commands_of_pages_start(page: Path) -> None:
    commands = re.findall(r"^prdp train (.*)$", page.read_text(), re.MULTILINE)
    assert commands
    for command in commands:
        config = compose(*shlex.split(command, comments=True), "output_dir=x")
        check_bounds(config)
        assert objective_problems(config) == []
        assert config.objective["name"] == page.stem


def test_windows_of_the_recipes() -> None:
    assert len(RECIPES) == len(NAMES)
    configs = dict(zip(NAMES, (compose(*shlex.split(one), "output_dir=x") for one in RECIPES), strict=True))
    drawn = {}
    for name, config in configs.items():
        check_bounds(config)
        assert objective_problems(config) == []
        sampler = config.sampler
        sigmas = np.linspace(1.0, 0.0, sampler.steps + 1)
        table = flow_transitions(
            sigmas,
            kind=sampler.kind,
            eta=sampler.eta,
            deterministic_final_steps=sampler.deterministic_final_steps,
        )
        prompts, drawn[name] = np.arange(40), []
        for epoch in EPOCHS:
            noise = windows(sampler, table.noisy, 0, epoch, prompts)
            drawn[name].append((noise, trained(sampler, noise, 0, epoch, prompts)))
    flow, fast, mix, dance = ([steps for _, steps in drawn[name]] for name in NAMES)
    assert flow[0][0].tolist() == list(range(9)), "all but the last"
    assert {tuple(row) for row in np.concatenate(fast).tolist()} == {(0, 1), (1, 2), (2, 3), (3, 4)}
    assert [steps[0].tolist() for steps in mix] == [[0, 1, 2, 3]] * 2 + [[1, 2, 3, 4], [2, 3, 4, 5]]
    assert dance[0].shape == (40, 9), "60 % of the 15 steps with noise"
    assert drawn["dance_grpo"][0][0].shape == (40, 15)
