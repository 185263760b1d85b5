"""The shared checks and the workforce of one process."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from cluster_stubs import StubSampler, build_worker, differences, prompts, weights

from prdp.cluster import build_workforce
from prdp.cluster.base import RewardError, WeightsMismatchError, Workforce, acknowledged
from prdp.cluster.inline import InlineWorkforce
from prdp.cluster.threads import planned_threads
from prdp.config import ClusterConfig
from prdp.types import Rollout


def inline(prompts_per_chunk: int = 2) -> Workforce:
    """An inline workforce with weights published."""
    workforce = build_workforce(ClusterConfig(), StubSampler, build_worker, prompts_per_chunk)
    workforce.publish(weights())
    return workforce


def test_samples_and_scores_in_prompt_order():
    seen: list[Rollout] = []
    rollout = inline().sample(prompts(5), images_per_prompt=3, seed=7, on_chunk=seen.append)
    assert [len(chunk.prompts) for chunk in seen] == [2, 2, 1]
    assert rollout.prompts == prompts(5)
    expected = rollout.images.mean((1, 2, 3)) / 255 + np.repeat(np.arange(5) / 10, 3)
    assert rollout.rewards is not None
    np.testing.assert_array_equal(rollout.rewards, expected)
    assert set(rollout.seconds) == {"sample", "score"}
    assert rollout.weights_version == 5


def test_chunk_size_does_not_change_results():
    one, three, all_at_once = (
        inline(size).sample(prompts(7, offset=4), images_per_prompt=2, seed=1) for size in (1, 3, 100)
    )
    assert not differences(one, three)
    assert not differences(one, all_at_once)


def test_sampling_without_trajectory_before_anything_is_published():
    workforce = build_workforce(ClusterConfig(), StubSampler, build_worker, 2)
    rollout = workforce.sample(prompts(2), images_per_prompt=2, seed=1, trajectory=False)
    assert rollout.latents.shape[1] == 0
    assert rollout.weights_version == 0


def test_wrong_binding_is_refused_with_both_checksums():
    published = weights(fault="misbound")
    with pytest.raises(WeightsMismatchError, match=f"inline sampler .*{published.checksum} was published"):
        inline().publish(published)


def test_acknowledgement_names_the_sampler_that_differs():
    published = weights()
    good = (published.version, published.checksum)
    with pytest.raises(WeightsMismatchError, match=r"sampler 1 acknowledged weights version 4, .*version 5"):
        acknowledged(published, {"sampler 0": good, "sampler 1": (4, published.checksum)})


def test_rollout_of_other_weights_is_refused():
    with pytest.raises(WeightsMismatchError, match=r"epoch 3, prompts 2 to 3 was made by weights version 4.*version 5"):
        inline().sample(prompts(6, {2: {"sampler": "stale"}}), images_per_prompt=2, seed=1)


def test_rollout_with_missing_images_is_refused():
    with pytest.raises(ValueError, match=r"prompts 0 to 1 holds 2 images, expected 4"):
        inline().sample(prompts(2, {0: {"sampler": "short"}}), images_per_prompt=2, seed=1)


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("raise", RewardError, r"'brightness' \(epoch 3, prompts 2 to 3\) raised ZeroDivisionError: no such mood"),
        ("nan", ValueError, r"'brightness' \(epoch 3, prompts 2 to 3\) returned nan for image 1 of 4"),
        ("short", ValueError, r"'brightness' \(epoch 3, prompts 2 to 3\) has shape \(3,\), expected \(4,\)"),
    ],
)
def test_bad_rewards_name_reward_and_place(fault, error, message):
    with pytest.raises(error, match=message):
        inline().sample(prompts(4, {2: {"reward": fault}}), images_per_prompt=2, seed=1)


def test_empty_requests_are_refused():
    with pytest.raises(ValueError, match="epoch 3 has no prompts"):
        inline().sample(prompts(0), images_per_prompt=2, seed=1)
    with pytest.raises(ValueError, match="images_per_prompt must be at least 1, got 0"):
        inline().sample(prompts(1), images_per_prompt=0, seed=1)


def test_scoring_takes_turns_with_sampling():
    """Each chunk is scored before the next one is sampled; actors overlap the two."""
    order: list[str] = []

    class Sampler(StubSampler):
        def sample(self, chunk, *arguments, **options):
            order.append(f"sample {chunk.offset}")
            return super().sample(chunk, *arguments, **options)

    workforce = build_workforce(ClusterConfig(), Sampler, build_worker, 2)
    workforce.sample(
        prompts(4), images_per_prompt=2, seed=1, on_chunk=lambda chunk: order.append(f"scored {chunk.prompts.offset}")
    )
    assert order == ["sample 0", "scored 0", "sample 2", "scored 2"]
    assert workforce.reward_identity == {"name": "brightness", "version": "1"}


def test_closed_workforce_says_so():
    workforce = inline()
    workforce.close()
    workforce.close()
    with pytest.raises(RuntimeError, match="closed"):
        workforce.publish(weights())


def test_unknown_kind_names_the_choices():
    with pytest.raises(ValueError, match=r"cluster\.kind is 'slurm'; expected one of inline, ray"):
        build_workforce(ClusterConfig(kind="slurm"), StubSampler, build_worker, 1)


def test_inline_does_not_import_ray():
    code = (
        "import sys, prdp.cluster, prdp.cluster.base, prdp.cluster.inline; "
        "sys.exit(any(name in sys.modules for name in ('ray', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_planned_threads(monkeypatch):
    monkeypatch.setattr("prdp.cluster.threads.usable_cores", lambda: 8)
    assert planned_threads(ClusterConfig(kind="ray", samplers=3, reward_actors=1, threads=0)) == 2
    assert planned_threads(ClusterConfig(kind="inline", samplers=3, threads=0)) == 8
    assert planned_threads(ClusterConfig(kind="ray", samplers=16, threads=0)) == 1
    assert planned_threads(ClusterConfig(threads=5)) == 5
    with pytest.raises(ValueError, match=r"cluster\.threads"):
        planned_threads(ClusterConfig(threads=-1))


def test_inline_workforce_keeps_no_copy_of_the_weights():
    workforce = InlineWorkforce(StubSampler, build_worker, 1)
    workforce.publish(weights())
    assert workforce._weights is not None
    assert not workforce._weights.tensors
