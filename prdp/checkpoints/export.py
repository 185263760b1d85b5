"""The weights that a run ends with, in the format of diffusers."""

from __future__ import annotations

from pathlib import Path

from prdp.checkpoints.run_folder import WEIGHTS
from prdp.config import TrainConfig
from prdp.diffusion.policy import Policy
from prdp.diffusion.usage import USAGE_FILE
from prdp.support.storage import atomic_directory
from prdp.types import Weights


def export_weights(config: TrainConfig, policy: Policy, weights: Weights, prompt: str) -> str:
    """Write weights for diffusers' pipelines to load, beside a text that says how; what it says, '' for a
    model that is none of diffusers' pipelines.

    Args:
        config: of the run.
        policy: binds the weights, and keeps them.
        weights: to be written.
        prompt: stands in the text as an example.

    Raises:
        StorageError: they cannot be written; those written before stay.
    """
    folder = Path(config.output_dir) / WEIGHTS
    policy.weights.bind(weights)
    with atomic_directory(folder) as temporary:
        policy.save(temporary)
        usage = policy.usage(config.model, config.sampler, config.learner.mode, folder, prompt)
        if usage:
            (temporary / USAGE_FILE).write_text(usage, encoding="utf-8")
    return usage
