"""Reward actors that import another version of a package than the trainer has, in a real training run.

    python benchmarks/reward_environment.py                      # a requirements file, installed by Ray
    python benchmarks/reward_environment.py /envs/scorer         # a virtual environment with ray, numpy and protobuf

Trains for two epochs on the embedded model, scored by a function that reports the version of protobuf it sees, and
prints that version, the trainer's, and the seconds of the run with and without an environment of its own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from prdp.tracking.jsonl import read_metrics

PINNED = "protobuf==3.20.3"
REWARD = """\
import numpy as np

def brightness(images, prompts, metadata):
    import google.protobuf
    major, minor, *_ = map(int, google.protobuf.__version__.split("."))
    versions = {"protobuf_major": major, "protobuf_minor": minor}
    return images.mean((1, 2, 3)), {name: np.full(len(images), float(value)) for name, value in versions.items()}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", nargs="?", help="what cluster.reward_environment is to be")
    options = parser.parse_args()
    print(f"trainer: protobuf {importlib.metadata.version('protobuf')}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "version_reward.py").write_text(REWARD)
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{PINNED}\n")
        environment = options.environment or str(requirements)
        for name, words in (("own", []), ("another", [f"cluster.reward_environment={environment}"])):
            seconds, version = run(Path(folder), name, words)
            print(f"{name} environment: reward actor has protobuf {version}, {seconds:.1f} s for the run", flush=True)


def run(folder: Path, name: str, words: list[str]) -> tuple[float, str]:
    """Seconds of a training run in a process of its own, and the version that its reward actor saw."""
    command = [sys.executable, "-m", "prdp", "train", "experiment=shapes_smoke", "cluster=ray", "cluster.samplers=1"]
    command += ["reward=callable", "reward.path=version_reward.brightness", "tracking=silent", f"output_dir={name}"]
    start = time.perf_counter()
    subprocess.run([*command, *words], cwd=folder, check=True, stdout=subprocess.DEVNULL, env=os.environ)
    seconds = time.perf_counter() - start
    line = read_metrics(folder / name)[-1]
    return seconds, f"{line['reward/protobuf_major']:.0f}.{line['reward/protobuf_minor']:.0f}"


if __name__ == "__main__":
    main()
