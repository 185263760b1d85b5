"""A run on points in the plane, the model that starts fastest, and one that is killed in its second epoch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

PROMPTS = "prdp.worlds.mixtures.prompts.GaussianMixturePrompts"
KILLED = """
import json, os, signal, sys
from prdp.configuration.typed import typed
from prdp.learners.learner import Learner
from prdp.train import main
step = Learner._step
def deadly(self):
    if self.version == 3:
        assert not set(sys.argv[2:]) & set(sys.modules)
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self)
Learner._step = deadly
main(typed(json.loads(sys.argv[1])))
"""


def points_run(output_dir: Path, **changes: Any) -> dict[str, Any]:
    """Three epochs of two updates, with a checkpoint after each; `changes` are keys, or of sections those to change."""
    config: dict[str, Any] = {
        "seed": 3,
        "epochs": 3,
        "prompts_per_epoch": 3,
        "images_per_prompt": 2,
        "updates_per_epoch": 2,
        "output_dir": str(output_dir),
        "model": {"family": "gaussian_mixtures", "path": "gaussian_mixtures"},
        "sampler": {"steps": 3, "guidance_scale": 1.0, "prompts_per_chunk": 1, "deterministic_final_steps": 1},
        "reward": {"_target_": "prdp.worlds.mixtures.reward.QuadraticOfPoint"},
        "prompts": {
            "train": {"_target_": PROMPTS, "split": "train", "size": 7},
            "heldout": {"_target_": PROMPTS, "split": "heldout", "size": 4},
        },
        "learner": {"mode": "full", "learning_rate": 1e-2, "ema_decay": 0.5},
        "evaluation": {"every": 2, "prompts": 2, "images_per_prompt": 2, "final_prompts": 2, "grid_prompts": 1},
        "tracking": {"console": False, "report": False},
        "checkpoint": {"every": 1, "keep": 10},
    }
    return {
        **config,
        **{
            key: {**config.get(key, {}), **value} if isinstance(value, dict) else value
            for key, value in changes.items()
        },
    }


def killed(config: dict[str, Any], *unneeded: str) -> None:
    """A run in a process of its own, which gets SIGKILL before the last step of the second epoch.

    Args:
        config: of three epochs of two updates.
        unneeded: modules that it must not have imported by then.
    """
    command = [sys.executable, "-c", KILLED, json.dumps(config), *unneeded]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == -signal.SIGKILL, done.stderr
