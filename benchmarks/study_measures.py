"""What a study records of a run: its final policy on seen and unseen prompts, its curve, and what it cost.

    python benchmarks/study_measures.py RUN_FOLDER [RUN_FOLDER ...]

prints a line of JSON for each run. In the world of mixtures that is the distance to the known optimum.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from prdp.config import TrainConfig
from prdp.configuration.geometry import geometry
from prdp.configuration.typed import read_config
from prdp.evidence.trajectory import TrajectoryRecorder
from prdp.support.targets import TARGET
from prdp.tracking.jsonl import read_metrics

WORLD = "prdp.worlds.mixtures.prompts.GaussianMixturePrompts"
PROMPTS, IMAGES = 128, 64
"""Of the world of mixtures, whose images are cheap."""
DRIFT_PROMPTS, DRIFT_IMAGES = 64, 2
BLOCKS = 60
"""Points that the curves over training epochs are averaged to."""


def measures(folder: Path, finished: bool) -> dict[str, Any]:
    """Of a run folder; of an unfinished run only the curve and the budget."""
    config = read_config(folder / "config.yaml")
    found: dict[str, Any] = {"budget": budget(config), "curve": curve(folder)}
    if finished:
        found |= mixtures(folder, config) if config.model.family == "gaussian_mixtures" else pictures(folder, config)
    return found


def budget(config: TrainConfig) -> dict[str, int]:
    """Images, reward queries, updates and network passes of the whole run; evaluations are not counted."""
    size = geometry(config)
    passes = size["sampling_passes_per_epoch"] + size["learning_passes_per_epoch"]
    return {
        "images": size["images"],
        "updates": size["updates"],
        "forward_passes": passes * config.epochs,
        "backward_passes": size["learning_backwards_per_epoch"] * config.epochs,
    }


def curve(folder: Path) -> dict[str, list[float]]:
    """Held-out scores by epoch, and training metrics as means over equal runs of epochs."""
    lines = read_metrics(folder)
    scores = [line for line in lines if "eval/score" in line]
    found: dict[str, list[float]] = {
        "eval_epoch": [line["epoch"] for line in scores],
        "eval_score": [round(line["eval/score"], 5) for line in scores],
    }
    epochs = [line for line in lines if "reward/mean" in line]
    found["seconds"] = [round(float(epochs[-1]["wall_seconds"]), 1)] if epochs else []
    blocks = np.array_split(np.arange(len(epochs)), min(BLOCKS, len(epochs))) if epochs else []
    for name in ("epoch", "reward/mean", "logratio_ref", "grad_norm", "clipfrac", "staleness"):
        rows = [[epochs[number].get(name, np.nan) for number in block] for block in blocks]
        means = [float(np.mean(row)) for row in rows]
        if np.isfinite(means).any():
            found[name.replace("/", "_")] = [float(f"{value:.5g}") for value in means]
    return found


def mixtures(folder: Path, config: TrainConfig) -> dict[str, Any]:
    """Distances to the optimum known in closed form; see `prdp.worlds.mixtures.distance`."""
    from safetensors.numpy import load_file

    from prdp.diffusion import build_sampler
    from prdp.prompts import build_prompts
    from prdp.prompts.stream import fixed_prompts
    from prdp.types import Weights
    from prdp.worlds.mixtures.distance import discretisation_error, distance_to_optimum

    kl_weight, offset = config.reward.get("kl_weight"), config.reward.get("prompt_offset", 0.0)
    if kl_weight is None:
        raise SystemExit(f"{folder}: reward.kl_weight is null, expected the weight that the optimum is defined by")
    learner = dataclasses.replace(config.learner, mode="full")
    start, trained = (
        build_sampler(config.model, learner, config.sampler, seed=config.seed, recorder=TrajectoryRecorder())
        for _ in range(2)
    )
    trained.load_weights(Weights.of(1, load_file(folder / "weights" / "correction.safetensors")))
    found: dict[str, Any] = {"kl_weight": kl_weight}
    seed = config.evaluation.seed
    for split in ("heldout", "train"):
        section = getattr(config.prompts, split)
        if section.get(TARGET) != WORLD:
            raise SystemExit(f"{folder}: prompts.{split} is {section.get(TARGET)}, expected {WORLD}")
        prompts = fixed_prompts(build_prompts(f"prompts.{split}", section), PROMPTS, seed)
        found[split] = distance_to_optimum(trained.sample(prompts, IMAGES, seed), kl_weight, offset)
        reference = start.sample(prompts, IMAGES, seed)
        found[f"{split}_start"] = distance_to_optimum(reference, kl_weight, offset)
        found[f"{split}_chain"] = discretisation_error(reference, kl_weight)
    return found


def best_rewards(config: TrainConfig, kl_weights: Sequence[float]) -> list[tuple[float, float]]:
    """(KL to the reference, reward) of the optimum for each KL weight, in closed form, on the held-out prompts."""
    from prdp.prompts import build_prompts
    from prdp.prompts.stream import fixed_prompts
    from prdp.worlds.mixtures.grammar import parse_all
    from prdp.worlds.mixtures.world import reference_mixtures, rewards_of

    prompts = fixed_prompts(build_prompts("prompts.heldout", config.prompts.heldout), PROMPTS, config.evaluation.seed)
    attributes = parse_all(prompts.texts)
    mixtures, rewards = reference_mixtures(attributes), rewards_of(attributes, config.reward.get("prompt_offset", 0.0))
    found = [(0.0, float(mixtures.expectation(rewards).mean()))]
    for weight in sorted(kl_weights, reverse=True):
        optimum, log_z = mixtures.tilted(rewards, weight)
        reward = float(optimum.expectation(rewards).mean())
        found.append((reward / weight - float(log_z.mean()), reward))
    return found


def pictures(folder: Path, config: TrainConfig) -> dict[str, Any]:
    """The last evaluation of the run, with how far its policy has drifted, and the first."""
    lines = [line for line in read_metrics(folder) if "eval/score" in line]
    found = {
        name: {key.removeprefix("eval/"): value for key, value in line.items() if key.startswith("eval/")}
        for name, line in (("heldout_start", lines[0]), ("heldout", lines[-1]))
    }
    found["heldout"]["drift"] = drift(folder, config)
    return found


def drift(folder: Path, config: TrainConfig) -> float:
    """Mean log-ratio of held-out images to the start, over latents and steps that draw noise; whatever was trained on.

    It estimates the KL of the whole chain, divided by latents and steps. Without noise in the sampler there is no such
    chain, so that of eta 1 is measured.
    """
    from prdp.evaluation.loading import build_evaluated_sampler
    from prdp.evaluation.models import find_models
    from prdp.evidence import Trajectory
    from prdp.prompts import build_prompts
    from prdp.prompts.stream import fixed_prompts
    from prdp.types import Weights

    sampler = dataclasses.replace(config.sampler, trained_share=1.0, window="all", eta=config.sampler.eta or 1.0)
    [model] = find_models([str(folder)], None)
    trained = build_evaluated_sampler(model, sampler, "float32", "cpu", None, kl=True)
    trained.load_weights(Weights.of(1, {}))
    prompts = fixed_prompts(
        build_prompts("prompts.heldout", config.prompts.heldout), DRIFT_PROMPTS, config.evaluation.seed
    )
    rollout = trained.sample(prompts, DRIFT_IMAGES, config.evaluation.seed, trajectory=True)
    return float(Trajectory().stored(rollout)["log_ratio"].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    for folder in parser.parse_args().runs:
        print(json.dumps({"run": str(folder), **measures(folder, finished=(folder / "weights").is_dir())}))


if __name__ == "__main__":
    main()
