"""The experiments that ship: their headers, and the numbers of the paper."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
from composing import compose

from prdp.configuration.compose import Composer
from prdp.configuration.geometry import geometry
from prdp.configuration.typed import conf_folder

EXPERIMENTS = sorted((conf_folder() / "experiment").glob("*.yaml"))


def header_commands(file: Path) -> list[list[str]]:
    """The `prdp train` commands in the comments at the top of an experiment file, as words."""
    header = re.match(r"(#.*\n)+", file.read_text())
    assert header
    found = re.findall(r"^#\s+(prdp train .*)$", header[0], re.MULTILINE)
    return [shlex.split(command)[2:] for command in found]


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_experiment_header_tells_commands_that_compose(file: Path) -> None:
    assert file.read_text().startswith("# @package _global_\n")
    commands = header_commands(file)
    assert len(commands) == 2
    for words in commands:
        sweep = "-m" in words
        overrides = [word for word in words if word != "-m"]
        assert overrides[0] == f"experiment={file.stem}"
        with Composer(overrides, sweep=sweep) as composer:
            assert len(composer.jobs()) == (2 if sweep else 1)


def test_experts_differ_in_their_aspect_alone() -> None:
    """Their adapters start from the same numbers: what is merged later agrees in most of its random factors."""
    with Composer(["experiment=shapes_expert", "reward.name=color,shape,count,fill"], sweep=True) as composer:
        configs = [job.config for job in composer.jobs()]
    assert [config.reward.pop("name") for config in configs] == ["color", "shape", "count", "fill"]
    first, *others = (dataclasses.replace(config, output_dir="x") for config in configs)
    assert others == [first] * 3
    assert first.learner.mode == "lora"


PAPER = {  # epochs, K, N, B, beta, clip range, learning rate
    "paper_small_scale": (100, 10, 32, 16, 3e-5, 1e-6, 1e-5),
    "paper_large_scale": (1000, 1, 64, 8, 3e-6, 1e-4, 7e-6),
    "multi_reward": (1000, 1, 64, 8, 3e-5, 1e-4, 1e-5),
}


@pytest.mark.parametrize("name", PAPER)
def test_paper_values_to_the_letter(name: str) -> None:
    [words, *_] = header_commands(conf_folder() / "experiment" / f"{name}.yaml")
    c = compose(*words)
    epochs, updates = c.epochs, c.updates_per_epoch
    sizes = (c.prompts_per_epoch, c.images_per_prompt)
    knobs = (c.objective["beta"], c.objective["clip_range"], c.learner.learning_rate)
    assert (epochs, updates, *sizes, *knobs) == PAPER[name]
    assert (c.sampler.kind, c.sampler.eta, c.sampler.steps, c.sampler.guidance_scale) == ("ddim", 1.0, 50, 5.0)
    assert (c.learner.mode, c.learner.max_grad_norm, c.learner.weight_decay) == ("full", 1.0, 1e-4)
    assert (c.objective["step_weighting"], c.sampler.deterministic_final_steps) == ("uniform", 0)
    assert c.model.path == "CompVis/stable-diffusion-v1-4"
    size = geometry(c)
    assert (size["images_per_epoch"], size["updates"]) == (512, 1000)
