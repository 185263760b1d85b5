"""Weights sent straight to the samplers: the same bytes, the same rollouts, and no transfer that hangs the run."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_stubs import StubSampler, build_worker, content, differences, prompts, weights

from prdp.cluster import build_workforce
from prdp.cluster.base import ClusterSetupError, WeightsMismatchError
from prdp.config import ClusterConfig
from prdp.configuration.bounds import _transport_misfits
from prdp.types import Rollout, Weights, tensors_checksum

pytest.importorskip("ray")
pytest.importorskip("torch")

from prdp.cluster.direct_weights import Manifest, Receiver, Rendezvous, TransferError, join, open_store, receive, send
from prdp.cluster.weight_transport import ObjectStoreTransport, build_transport

HERE = "127.0.0.1"
TENSORS = {
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    "columns": np.arange(12, dtype=np.float64).reshape(3, 4).T,
    "strange": np.array([np.nan, -0.0, np.inf], np.float16),
    "none": np.zeros((0, 3), np.float32),
    "flags": np.array([True, False, True]),
    "large numbers": np.array([2**62, -1]),
    "single": np.array(2.5, np.float32),
    "big-endian": np.arange(5, dtype=">i2"),
    "every other": np.arange(20, dtype=np.uint8)[::2],
}


@contextlib.contextmanager
def pair(timeout: float) -> Iterator[tuple[Any, Any]]:
    """Both ends of a group, in this process."""
    _store, port = open_store(HERE, timeout)
    rendezvous = Rendezvous(HERE, port, "pair", "gloo", timeout)
    with ThreadPoolExecutor(2) as pool:
        learner, sampler = pool.map(lambda rank: join(rendezvous, rank, HERE), (0, 1))
    yield learner, sampler


@pytest.mark.parametrize("bucket_bytes", [7, 64, 2**20])
def test_every_byte_arrives_in_buckets_of_any_size(bucket_bytes):
    arrived = {name: np.empty(array.shape, array.dtype) for name, array in TENSORS.items()}
    with pair(30.0) as (learner, sampler), ThreadPoolExecutor(1) as pool:
        done = pool.submit(receive, sampler, arrived, "cpu", bucket_bytes)
        buckets: list[None] = []
        send(learner, TENSORS, "cpu", lambda: buckets.append(None), bucket_bytes)
        done.result()
    assert [content(array) for array in arrived.values()] == [content(array) for array in TENSORS.values()]
    assert len(buckets) == -(-sum(array.nbytes for array in TENSORS.values()) // bucket_bytes)


def test_a_receiver_gets_weights_after_weights_and_none_at_all():
    _store, port = open_store(HERE, 30.0)
    rendezvous, receiver = Rendezvous(HERE, port, "sampler 0/0", "gloo", 30.0), Receiver(HERE)
    with ThreadPoolExecutor(1) as pool:
        group = pool.submit(join, rendezvous, 0, HERE)
        for published in (Weights.of(3, TENSORS), Weights.of(4, {}), Weights.of(5, {"one": np.ones(1)})):
            done = pool.submit(lambda sent=published: send(group.result(), sent.tensors, "cpu"))
            got = receiver.receive(rendezvous, Manifest.of(published))
            done.result()
            assert (got.version, got.checksum) == (published.version, published.checksum)
            assert tensors_checksum(got.tensors) == published.checksum


def test_an_end_that_takes_nothing_or_never_comes_is_an_error_in_time():
    with pair(0.5) as (learner, _), pytest.raises(RuntimeError):
        send(learner, {"one": np.ones(1)}, "cpu")
    _store, port = open_store(HERE, 0.5)
    with pytest.raises(TransferError, match="the weights did not arrive: "):
        Receiver(HERE).receive(Rendezvous(HERE, port, "nobody", "gloo", 0.5), Manifest.of(weights()))


class TorchSampler(StubSampler):
    """Has torch imported before any weights come, as samplers have."""

    def __init__(self) -> None:
        super().__init__()
        import torch.distributed  # noqa: F401


@pytest.fixture(scope="module")
def direct(private_ray: Any) -> Iterator[Any]:
    """Two samplers that get their weights by gloo."""
    config = ClusterConfig(kind="ray", samplers=2, weight_transport="gloo")
    workforce = build_workforce(config, TorchSampler, build_worker, 2, "cpu")
    yield workforce
    workforce.close()


@pytest.fixture(scope="module")
def expected() -> dict[int, Rollout]:
    """What one process makes of the same requests."""
    workforce = build_workforce(ClusterConfig(), StubSampler, build_worker, 2)
    return {published.version: run(workforce, published) for published in (weights(5, 0.5), weights(6, 2.0))}


@pytest.fixture
def stopped(direct: Any) -> Iterator[int]:
    """Process of sampler 0, which is first to get weights, stopped: alive, and deaf."""
    run(direct, weights(7, 1.0))
    direct._dispatcher.await_ready()
    pid = direct.process_ids["sampler 0"]
    os.kill(pid, signal.SIGSTOP)
    yield pid
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def run(workforce: Any, published: Weights) -> Rollout:
    """Publish and sample."""
    workforce.publish(published)
    return workforce.sample(prompts(9), images_per_prompt=2, seed=1)


def test_rollouts_equal_inline_bit_for_bit_under_one_version_after_the_other(direct, expected):
    for version, scale in ((5, 0.5), (6, 2.0), (5, 0.5)):
        rollout = run(direct, weights(version, scale))
        assert not differences(rollout, expected[version])
        assert rollout.seconds["bind"] > 0


def test_requests_overlap_and_each_keeps_its_weights(direct, tmp_path):
    """The first request waits for a pipe that is only written to when the second one is being scored."""
    pipe = f"{tmp_path}/pipe"
    os.mkfifo(pipe)
    held_open = os.open(pipe, os.O_RDWR)
    try:
        direct.publish(weights(5, 0.5))
        first = direct.submit(prompts(2, {0: {"sampler": f"await:{pipe}"}}), images_per_prompt=2, seed=1)
        direct.publish(weights(6, 2.0))
        second = direct.submit(prompts(9, {8: {"reward": f"tell:{pipe}"}}), images_per_prompt=2, seed=1, urgent=True)
        later, earlier = second.result(), first.result()
    finally:
        os.close(held_open)
    assert (earlier.weights_version, later.weights_version) == (5, 6)
    assert (later.stored["latents"][: len(earlier)] == earlier.stored["latents"][:] * 4).all()


def test_wrong_binding_is_refused(direct, expected):
    published = weights(fault="misbound")
    with pytest.raises(WeightsMismatchError, match=rf"sampler \d acknowledged .*{published.checksum} was published"):
        run(direct, published)
    with pytest.raises(KeyError, match="tensor 'unknown' is not one of the model"):
        run(direct, weights(fault="unknown"))
    assert not differences(run(direct, weights(5, 0.5)), expected[5])


def test_samplers_killed_between_transfers_are_replaced(direct, expected):
    run(direct, weights(5, 0.5))
    for name in ("sampler 0", "sampler 1"):
        os.kill(direct.process_ids[name], signal.SIGKILL)
    assert not differences(run(direct, weights(6, 2.0)), expected[6])


def test_a_sampler_killed_within_a_transfer_is_replaced(direct, expected, stopped):
    direct.publish(weights(5, 0.5))
    pending = direct.submit(prompts(9), images_per_prompt=2, seed=1)
    handed_out = threading.Event()
    direct._dispatcher._loop.call(handed_out.set)
    assert handed_out.wait(60)
    assert direct._transport._current.member.name == "sampler 0"
    os.kill(stopped, signal.SIGKILL)
    assert not differences(pending.result(), expected[5])
    assert not any(pending.deaths), "a chunk that waited for its weights was blamed"


def test_a_sampler_that_hangs_within_a_transfer_is_replaced(direct, expected, stopped, monkeypatch, caplog):
    monkeypatch.setattr(direct._transport, "_timeout", 3.0)
    direct.publish(weights(6, 2.0))
    pending = direct.submit(prompts(9), images_per_prompt=2, seed=1)
    assert not differences(pending.result(), expected[6])
    assert not any(pending.deaths), "a chunk that waited for its weights was blamed"
    assert "sampler 0 hung and is restarted: it took no weights within cluster.weight_timeout_seconds=3" in caplog.text
    direct._dispatcher.await_ready()
    assert direct.process_ids["sampler 0"] != stopped


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads the sockets of Linux")
def test_both_ends_listen_on_loopback_only(direct):
    from test_ray_session import LOOPBACK, listening

    run(direct, weights(5, 0.5))
    addresses = list(listening({os.getpid(), *direct.process_ids.values()}))
    assert len(addresses) >= 4
    assert not [address for address in addresses if address not in LOOPBACK]


def test_what_cannot_work_is_named_by_key():
    nccl = ClusterConfig(kind="ray", weight_transport="nccl")
    with pytest.raises(ClusterSetupError, match=r"^cluster\.weight_transport=nccl: "):
        build_transport(nccl, "cpu")
    assert isinstance(build_transport(nccl, None), ObjectStoreTransport)
    with pytest.raises(ValueError, match=r"^cluster\.weight_transport is 'post'; expected one of object_store, gl"):
        build_transport(ClusterConfig(kind="ray", weight_transport="post"), "cpu")


@pytest.mark.parametrize(
    ("cluster", "named"),
    [
        ({"kind": "inline", "weight_transport": "gloo"}, ["cluster.weight_transport=gloo: needs cluster=ray"]),
        ({"kind": "ray", "weight_transport": "gloo"}, []),
        ({"kind": "ray", "weight_transport": "nccl", "learner_gpus": 1.0, "sampler_gpus": 1.0}, []),
        (
            {"kind": "ray", "weight_transport": "nccl", "sampler_gpus": 0.5},
            ["cluster.learner_gpus=0: must be a whole number", "cluster.sampler_gpus=0.5: must be a whole number"],
        ),
    ],
)
def test_combinations_that_cannot_work_are_refused_before_the_start(cluster, named):
    found = _transport_misfits(ClusterConfig(**cluster))
    assert len(found) == len(named)
    assert all(problem.startswith(words) for problem, words in zip(found, named, strict=True))
