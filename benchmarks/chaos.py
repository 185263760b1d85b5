"""Kills something every few seconds during a training run, and compares its end with that of an undisturbed run.

    python benchmarks/chaos.py                           # five minutes or so on two cores
    python benchmarks/chaos.py --epochs 200 --every 10
    python benchmarks/chaos.py --targets 'hung sampler' --every 60
    python benchmarks/chaos.py --points                  # on the world of points, whose actors start in less time

A Ray of two nodes runs on this machine. `prdp supervise train ... cluster=ray` joins it; sampler actors, reward actors,
the second node (replaced by a fresh one) and, when it has finished an epoch since the last time, the learner's process
are killed by SIGKILL, in turns at random moments. A 'hung sampler' is stopped by SIGSTOP instead, and has 20 s for a
chunk; one that is still starting is left alone. The run has to end by itself, with the same weights as one process that
nobody disturbed, and every prompt used once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from prdp.checkpoints.checkpoint import find_latest, load_checkpoint
from prdp.commands.supervise import finished_epochs
from prdp.prompts.usage import read_prompt_log
from prdp.tracking.jsonl import read_metrics

TARGETS = ("sampler", "reward actor", "learner", "node")
HUNG = "hung sampler"
TITLES = {"sampler": "ray::SamplerActor", "reward actor": "ray::RewardActor", HUNG: "ray::SamplerActor"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--every", type=float, default=6.0, metavar="SECONDS", help="between kills, on average")
    parser.add_argument("--kills", type=int, default=0, help="stop killing after so many; 0 for no limit")
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=(*TARGETS, HUNG))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--points", action="store_true", help="train on points, not on pictures")
    parser.add_argument("--overrides", nargs="*", default=[], help="of both runs, after those of this script")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = compare(Path(folder), options)
    print(json.dumps(result, indent=1))
    return 0 if result["same_weights"] and result["each_prompt_once"] else 1


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run undisturbed and disturbed; what was killed, what the seconds were, whether the ends agree."""
    world = ["experiment=mixtures_large", "checkpoint.every=1"] if options.points else ["experiment=shapes_smoke"]
    overrides = [
        *world,
        "tracking=silent",
        f"epochs={options.epochs}",
        "prompts_per_epoch=4",
        "images_per_prompt=2",
        "sampler.prompts_per_chunk=1",
        f"prompts={'gaussian_mixtures' if options.points else 'shapes'}",
        "evaluation.every=0",
        *options.overrides,
    ]
    start = time.perf_counter()
    command = [sys.executable, "-m", "prdp", "train", *overrides, f"output_dir={folder / 'straight'}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    undisturbed = time.perf_counter() - start
    start = time.perf_counter()
    kills = disturbed(folder, overrides, options)
    straight, chaotic = (final(folder / name) for name in ("straight", "chaotic"))
    used = [index for line in read_prompt_log(folder / "chaotic")[1] for index in line["indices"]]
    epochs = [line["epoch"] for line in read_metrics(folder / "chaotic")]
    return {
        "epochs": options.epochs,
        "kills": dict(kills),
        "undisturbed_seconds": round(undisturbed, 1),
        "disturbed_seconds": round(time.perf_counter() - start, 1),
        "same_weights": straight.keys() == chaotic.keys()
        and all(np.array_equal(value, chaotic[name]) for name, value in straight.items()),
        "each_prompt_once": len(used) == len(set(used)) == 4 * options.epochs,
        "each_epoch_logged_once": epochs == list(range(options.epochs + 1)),
    }


def disturbed(folder: Path, overrides: list[str], options: argparse.Namespace) -> Counter[str]:
    """Train under supervision while things are killed; how many of each."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
    from ray.cluster_utils import Cluster

    store = {"num_cpus": 4, "object_store_memory": 2**28}
    cluster = Cluster(initialize_head=True, head_node_args={**store, "include_dashboard": False})
    # An address of its own, or the learner would join by the node that is going to be killed.
    second = cluster.add_node(node_ip_address="127.0.0.2", **store)
    chance, kills = random.Random(options.seed), Counter[str]()
    command = [sys.executable, "-m", "prdp", "supervise", "--first-pause", "0.1", "train", *overrides, "cluster=ray"]
    command += ["cluster.samplers=3", "cluster.placement=spread", f"cluster.address={cluster.address}"]
    command += [f"output_dir={folder / 'chaotic'}"]
    if HUNG in options.targets:
        command += ["cluster.sample_timeout_seconds=20"]
    with open(folder / "chaotic.log", "w") as log:
        run = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    turns, reached = turns_of(options.targets, chance), -1
    try:
        while not options.kills or kills.total() < options.kills:
            try:
                code = run.wait(chance.uniform(0.5, 1.5) * options.every)
                break
            except subprocess.TimeoutExpired:
                target = next(turns)
            if target in ("learner", HUNG):
                # One that never gets anywhere would be given up, and rightly. And a sampler that is stopped while it
                # starts has `cluster.start_timeout_seconds`, a quarter of an hour.
                before, reached = reached, max(reached, finished_epochs(folder / "chaotic"))
                if reached == before:
                    continue
            if target == "node":
                cluster.remove_node(second, allow_graceful=False)
                second = cluster.add_node(node_ip_address="127.0.0.2", **store)
            elif victim := victim_of(target, run.pid, chance):
                os.kill(victim, signal.SIGSTOP if target == HUNG else signal.SIGKILL)
            else:
                continue
            kills[target] += 1
            print(f"killed: {dict(kills)}", file=sys.stderr, flush=True)
        code = run.wait()
    finally:
        run.terminate()
        cluster.shutdown()
    if code:
        raise SystemExit(f"the disturbed run ended with {code}:\n{(folder / 'chaotic.log').read_text()[-4000:]}")
    return kills


def turns_of(targets: list[str], chance: random.Random) -> Iterator[str]:
    """Every target once, in a random order, again and again."""
    while True:
        yield from chance.sample(targets, len(targets))


def victim_of(target: str, supervisor: int, chance: random.Random) -> int | None:
    """A process of ours to kill; None while there is none of the kind."""
    family = descendants(os.getpid())
    if target == "learner":
        children = [pid for pid, (parent, _) in family.items() if parent == supervisor]
        return children[0] if children else None
    titles = {pid: title for pid, (_, title) in family.items() if title.startswith(TITLES[target])}
    starting = (".__init__", ".build")
    actors = [pid for pid, title in titles.items() if target != HUNG or not title.strip().endswith(starting)]
    return chance.choice(actors) if actors else None


def descendants(root: int) -> dict[int, tuple[int, str]]:
    """Process -> parent and command line, of all processes that this one started, and those."""
    everybody: dict[int, tuple[int, str]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            title = (stat.parent / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        everybody[int(stat.parent.name)] = parent, title
    family = {root}
    while more := {pid for pid, (parent, _) in everybody.items() if parent in family} - family:
        family |= more
    return {pid: everybody[pid] for pid in family if pid in everybody}


def final(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a run's last checkpoint."""
    path = find_latest(folder)
    assert path is not None, f"no checkpoint in {folder}"
    return load_checkpoint(path).tensors


if __name__ == "__main__":
    sys.exit(main())
