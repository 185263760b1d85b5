"""Actors give the results of one process, bit for bit, and again after they died."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_stubs import Fault, StubSampler, ThreadReport, build_worker, differences, prompts, weights

from prdp.cluster import build_workforce
from prdp.cluster.base import ClusterError, RewardError, WeightsMismatchError
from prdp.config import ClusterConfig
from prdp.types import Rollout

ray = pytest.importorskip("ray")

Build = Callable[..., Any]


@pytest.fixture
def build(private_ray: None) -> Iterator[Build]:
    """Builds Ray workforces with faults and closes them."""
    built = []

    def make(samplers: int = 2, sampler: Fault = Fault(), reward: Any = Fault(), **options: Any) -> Any:
        config = ClusterConfig(kind="ray", samplers=samplers, **options)
        reward_factory = functools.partial(build_worker, reward) if isinstance(reward, Fault) else reward
        built.append(build_workforce(config, functools.partial(StubSampler, sampler), reward_factory, 2))
        return built[-1]

    yield make
    for workforce in built:
        workforce.close()


def inline_rollout(count: int = 9) -> Rollout:
    """What one process makes of the same request."""
    workforce = build_workforce(ClusterConfig(), StubSampler, build_worker, 2)
    workforce.publish(weights())
    return workforce.sample(prompts(count), images_per_prompt=2, seed=1)


def ray_rollout(workforce: Any, count: int = 9, **options: Any) -> Rollout:
    """The request, to actors."""
    workforce.publish(weights())
    return workforce.sample(prompts(count), images_per_prompt=2, seed=1, **options)


@pytest.mark.parametrize("samplers", [1, 2, 4])
def test_equals_inline_bit_for_bit(build, samplers):
    seen = []
    rollout = ray_rollout(build(samplers, reward_actors=2), on_chunk=seen.append)
    assert not differences(rollout, inline_rollout())
    assert sorted(chunk.prompts.offset for chunk in seen) == [0, 2, 4, 6, 8]
    assert all(chunk.rewards is not None for chunk in seen)
    assert set(rollout.seconds) == {"sample", "score"}
    assert rollout.latents.flags.writeable
    assert rollout.rewards is not None
    assert rollout.rewards.flags.writeable


def test_new_weights_reach_every_sampler(build):
    workforce = build(2)
    first = ray_rollout(workforce)
    workforce.publish(weights(6, 2.0))
    second = workforce.sample(prompts(9), images_per_prompt=2, seed=1)
    assert (first.weights_version, second.weights_version) == (5, 6)
    assert (second.latents == first.latents * 4).all()


def test_scoring_goes_on_while_sampling_does(build, tmp_path):
    pipe = f"{tmp_path}/mark.pipe"
    os.mkfifo(pipe)
    held_open = os.open(pipe, os.O_RDWR)
    try:
        late = Fault("await_scoring", 8, once=f"{tmp_path}/mark")
        (tmp_path / "other.pipe").symlink_to(pipe)
        early = Fault("tell", 0, once=f"{tmp_path}/other")
        rollout = ray_rollout(build(1, late, early))
    finally:
        os.close(held_open)
    assert not differences(rollout, inline_rollout())


def test_sampler_killed_within_a_chunk_is_replaced_with_equal_results(build, tmp_path):
    workforce = build(2, Fault("kill", 4, once=str(tmp_path / "killed")))
    before = dict(workforce.process_ids)
    rollout = ray_rollout(workforce)
    assert (tmp_path / "killed").exists()
    assert not differences(rollout, inline_rollout())
    assert sum(before[name] != pid for name, pid in workforce.process_ids.items()) == 1
    assert not differences(workforce.sample(prompts(9), images_per_prompt=2, seed=1), rollout)


def test_every_process_killed_from_outside_is_replaced(build):
    workforce = build(2)
    victims = list(workforce.process_ids.values())

    def kill_all(_: Rollout) -> None:
        while victims:
            os.kill(victims.pop(), signal.SIGKILL)

    assert not differences(ray_rollout(workforce, on_chunk=kill_all), inline_rollout())


def test_sampler_killed_between_rollouts_is_replaced_at_publication(build):
    workforce = build(2)
    ray_rollout(workforce)
    os.kill(workforce.process_ids["sampler 1"], signal.SIGKILL)
    workforce.publish(weights(6, 2.0))
    rollout = workforce.sample(prompts(9), images_per_prompt=2, seed=1)
    assert rollout.weights_version == 6


def test_reward_actor_killed_within_a_chunk_is_replaced(build, tmp_path):
    rollout = ray_rollout(build(2, reward=Fault("kill", 2, once=str(tmp_path / "killed"))))
    assert (tmp_path / "killed").exists()
    assert not differences(rollout, inline_rollout())


def test_chunk_that_kills_every_sampler_ends_the_run_with_the_cause(build):
    workforce = build(1, Fault("kill", 4), retries=1)
    with pytest.raises(ClusterError, match=r"epoch 3, prompts 4 to 5: sampler 0 died .* attempt 2 of 2.*Actor"):
        ray_rollout(workforce)


def test_wrong_binding_is_refused(build):
    with pytest.raises(WeightsMismatchError, match=rf"sampler 0 acknowledged .*{weights().checksum} was published"):
        build(2, Fault("bind")).publish(weights())


def test_rollout_of_other_weights_is_refused(build):
    with pytest.raises(WeightsMismatchError, match=r"epoch 3, prompts 2 to 3 was made by weights version 4"):
        ray_rollout(build(1, Fault("stale", 2)))


@pytest.mark.parametrize(
    ("sampler", "reward", "error", "message"),
    [
        ("", "raise", RewardError, r"^reward 'brightness' \(epoch 3, prompts 2 to 3\) raised ZeroDivisionError: no such"),
        ("", "nan", ValueError, r"^reward 'brightness' \(epoch 3, prompts 2 to 3\) returned nan for image 1 of 4"),
        ("", "short", ValueError, r"^reward 'brightness' \(epoch 3, prompts 2 to 3\) has shape \(3,\), expected \(4,\)"),
        ("raise", "", ValueError, r"^latents of step 3 are not finite"),
        ("raise_awkward", "", RuntimeError, r"^AwkwardError: unet broke"),
    ],
)
def test_errors_of_the_work_come_as_themselves(build, sampler, reward, error, message):
    workforce = build(1, Fault(sampler, 2), Fault(reward, 2))
    before = dict(workforce.process_ids)
    with pytest.raises(error, match=message) as caught:
        ray_rollout(workforce)
    assert type(caught.value) is error
    assert "in process_ids" not in str(caught.value)
    assert "epoch 3, prompts 2 to 3 (process " in caught.value.__notes__[0]
    assert "cluster_stubs.py" in caught.value.__notes__[0]
    assert workforce.process_ids == before


def test_errors_of_building_and_binding_come_as_themselves(build):
    with pytest.raises(FileNotFoundError, match="no model folder 'nowhere'"):
        build(2, Fault("build"))
    with pytest.raises(KeyError, match="tensor 'scale' is unknown"):
        build(1, Fault("unknown_tensor")).publish(weights())


def test_resources_that_are_not_there_are_named_at_once(build):
    with pytest.raises(ClusterError, match=r"samplers=2 with cluster.sampler_gpus=64, .*128 GPUs; there are 1 node"):
        build(2, sampler_gpus=64)
    with pytest.raises(ClusterError, match=r"samplers=900 .* ask for 901 CPUs"):
        build(900)


@pytest.mark.parametrize(("key", "value"), [("samplers", 0), ("reward_actors", 0), ("retries", -1)])
def test_numbers_that_make_no_cluster_are_named(build, key, value):
    with pytest.raises(ValueError, match=rf"cluster\.{key} must be .*got {value}"):
        build(**{key: value})


def test_threads_are_set_before_torch_is_imported(build):
    pytest.importorskip("torch")
    rollout = ray_rollout(build(1, reward=ThreadReport, threads=3), count=2)
    assert set(rollout.sub_scores["threads"]) == {3}
    assert set(rollout.sub_scores["omp"]) == {3}


OWN_CLUSTER = """
    import functools, os, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from cluster_stubs import StubSampler, build_worker, prompts, weights
    from prdp.cluster import build_workforce
    from prdp.config import ClusterConfig

    def descendants(root):
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
        family = {root}
        while more := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= more
        return family

    def listening(family):
        inodes = set()
        for pid in family:
            for entry in Path(f"/proc/{pid}/fd").glob("*"):
                try:
                    inodes.add(os.readlink(entry).removeprefix("socket:[").removesuffix("]"))
                except OSError:
                    continue
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in inodes:
                    yield fields[1].split(":")[0]

    workforce = build_workforce(ClusterConfig(kind="ray", samplers=4, dashboard=True), StubSampler, build_worker, 2)
    workforce.publish(weights())
    workforce.sample(prompts(4), images_per_prompt=2, seed=1)
    addresses = list(listening(descendants(os.getpid())))
    loopback = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
    print("ports", len(addresses), "open", sum(address not in loopback for address in addresses))
    import ray
    from ray._common.usage.usage_lib import usage_stats_enabled
    print("usage", usage_stats_enabled())
    workforce.close()
    workforce.close()
    print("running", ray.is_initialized())
"""


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads the sockets of Linux")
def test_own_cluster_listens_on_loopback_only_and_ends_with_the_workforce(tmp_path):
    script = tmp_path / "own_cluster.py"
    script.write_text(textwrap.dedent(OWN_CLUSTER))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run(
        [sys.executable, str(script), str(Path(__file__).parent)],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )
    assert result.returncode == 0, result.stderr
    ports, usage, running = result.stdout.splitlines()
    assert int(ports.split()[1]) >= 8
    assert ports.endswith("open 0")
    assert (usage, running) == ("usage False", "running False")
