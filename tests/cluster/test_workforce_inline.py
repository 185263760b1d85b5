"""The shared checks and the workforce of one process."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from cluster_stubs import StubSampler, build_worker, content, differences, prompts, weights

from prdp.cluster import buffers, build_workforce
from prdp.cluster.base import RewardWorker, WeightsMismatchError, Workforce, acknowledged, arrays_of, back_off
from prdp.cluster.threads import planned_threads
from prdp.config import ClusterConfig
from prdp.rewards.scoring import RewardFaultError, RewardUnavailableError
from prdp.types import Rollout, Weights


def run(workforce: Workforce, published: Weights) -> Rollout:
    """Publish and sample."""
    workforce.publish(published)
    return workforce.sample(prompts(2), images_per_prompt=2, seed=1)


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
    assert set(rollout.seconds) == {"bind", "sample", "score", "sampling", "rollout"}
    assert rollout.weights_version == 5


def test_seconds_of_sampling_scoring_and_binding_are_told_apart_and_add_up(monkeypatch):
    now = [0.0]

    def passes(seconds, method):
        def slower(*arguments, **options):
            now[0] += seconds
            return method(*arguments, **options)

        return slower

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    for owner, name, seconds in (
        (StubSampler, "load_weights", 1),
        (StubSampler, "sample", 3),
        (RewardWorker, "score", 2),
    ):
        monkeypatch.setattr(owner, name, passes(seconds, getattr(owner, name)))
    rollout = inline().sample(prompts(5), images_per_prompt=1, seed=7)
    assert rollout.seconds == {"bind": 1, "sample": 9, "sampling": 9, "score": 6, "rollout": 16}


def test_a_stall_is_told_and_seen_in_the_status(monkeypatch, caplog):
    told = []

    def stall(self, *arguments, **options):
        workforce._watchdog._clock = lambda: 1e9
        workforce._watchdog.look()
        told.append({actor["name"]: actor for actor in workforce.status()["actors"]})
        return sample(self, *arguments, **options)

    sample = StubSampler.sample
    monkeypatch.setattr(StubSampler, "sample", stall)
    workforce = inline()
    workforce.sample(prompts(2), images_per_prompt=1, seed=7)
    workforce.close()
    assert "sampling epoch 3, prompts 0 to 1 has taken" in caplog.text
    assert told[0]["sampler"]["doing"] == "sampling epoch 3, prompts 0 to 1"
    assert "doing" not in told[0]["reward actor"]


def test_chunk_size_does_not_change_results():
    one, three, all_at_once = (
        inline(size).sample(prompts(7, offset=4), images_per_prompt=2, seed=1) for size in (1, 3, 100)
    )
    assert not differences(one, three)
    assert not differences(one, all_at_once)


def test_sampling_without_trajectory_before_anything_is_published():
    workforce = build_workforce(ClusterConfig(), StubSampler, build_worker, 2)
    rollout = workforce.sample(prompts(2), images_per_prompt=2, seed=1, trajectory=False)
    assert not rollout.stored and not rollout.conditions
    assert rollout.weights_version == 0


def test_wrong_binding_is_refused_with_both_checksums():
    published = weights(fault="misbound")
    with pytest.raises(WeightsMismatchError, match=f"inline sampler .*{published.checksum} was published"):
        run(inline(), published)


def test_acknowledgement_names_the_sampler_that_differs():
    acknowledged((5, "ab"), "sampler 0", (5, "ab"))
    with pytest.raises(WeightsMismatchError, match=r"sampler 1 acknowledged weights version 4, .*version 5"):
        acknowledged((5, "ab"), "sampler 1", (4, "ab"))


def test_rollout_of_other_weights_is_refused():
    with pytest.raises(WeightsMismatchError, match=r"epoch 3, prompts 2 to 3 was made by weights version 4.*version 5"):
        inline().sample(prompts(6, {2: {"sampler": "stale"}}), images_per_prompt=2, seed=1)


def test_rollout_with_missing_images_is_refused():
    with pytest.raises(ValueError, match=r"prompts 0 to 1 holds 2 images, expected 4"):
        inline().sample(prompts(2, {0: {"sampler": "short"}}), images_per_prompt=2, seed=1)


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("raise", RewardFaultError, r"'brightness' \(epoch 3, prompts 2 to 3\) raised ZeroDivisionError: no such mood"),
        ("nan", RewardFaultError, r"'brightness' \(epoch 3, prompts 2 to 3\) returned nan for image 1 of 4"),
        ("short", RewardFaultError, r"'brightness' \(epoch 3, prompts 2 to 3\) has shape \(3,\), expected \(4,\)"),
    ],
)
def test_bad_rewards_name_reward_and_place(fault, error, message):
    with pytest.raises(error, match=message):
        inline().sample(prompts(4, {2: {"reward": fault}}), images_per_prompt=2, seed=1)


def test_a_reward_that_writes_by_force_harms_no_picture_that_is_kept():
    plain = inline().sample(prompts(4), images_per_prompt=2, seed=1)
    forced = inline().sample(prompts(4, {2: {"reward": "insist"}}), images_per_prompt=2, seed=1)
    np.testing.assert_array_equal(forced.images, plain.images)
    assert forced.images.any()


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


def test_requests_keep_the_weights_they_were_made_under():
    workforce = inline()
    early = workforce.submit(prompts(2), images_per_prompt=2, seed=1)
    workforce.publish(weights(6, 2.0))
    late = workforce.submit(prompts(2), images_per_prompt=2, seed=1)
    urgent = workforce.sample(prompts(2), images_per_prompt=2, seed=1)
    assert early.result().weights_version == 5
    assert late.result().weights_version == urgent.weights_version == 6


def test_status_counts_chunks():
    workforce = inline()
    workforce.sample(prompts(5), images_per_prompt=2, seed=1)
    told = workforce.status()
    assert [actor["chunks"] for actor in told["actors"]] == [3, 3]
    assert told["last_fault"] is None


class Moody:
    """A reward that raises so many times before it answers."""

    name, version = "moody", "1"

    def __init__(self, times: int) -> None:
        self.left = times

    def score(self, images, prompts, metadata):
        self.left -= 1
        if self.left >= 0:
            raise TimeoutError(f"{self.left} to go")
        return np.zeros(len(images)), {}


def test_a_reward_that_raises_is_asked_again_with_growing_pauses(monkeypatch, caplog):
    pauses: list[float] = []
    monkeypatch.setattr("prdp.cluster.base.time.sleep", pauses.append)
    rewards, _ = RewardWorker(Moody(3), retries=3).score(np.zeros((2, 4, 4, 3), np.uint8), ["a"] * 2, [{}] * 2, "here")
    assert list(rewards) == [0, 0]
    assert pauses == [1.0, 2.0, 4.0]
    assert "reward 'moody' (here) raised TimeoutError: 2 to go; tried again in 1.0 s (1 of 3)" in caplog.text
    with pytest.raises(RewardUnavailableError, match=r"raised TimeoutError: 1 to go \(attempt 4 of 4\)"):
        RewardWorker(Moody(5), retries=3).score(np.zeros((2, 4, 4, 3), np.uint8), ["a"] * 2, [{}] * 2, "here")


def test_a_reward_that_retries_itself_is_asked_once():
    reward = Moody(1)
    reward.retries_itself = True
    with pytest.raises(RewardUnavailableError, match=r"raised TimeoutError: 0 to go\n"):
        RewardWorker(reward, retries=3).score(np.zeros((1, 4, 4, 3), np.uint8), ["a"], [{}], "here")


def test_pauses_grow_up_to_a_limit():
    assert [back_off(failures) for failures in (1, 2, 5, 6, 2000)] == [1, 2, 16, 30, 30]


def test_the_memory_of_a_released_rollout_is_used_for_the_next_one(monkeypatch):
    monkeypatch.setattr(buffers, "SMALLEST", 1)
    monkeypatch.setattr(buffers, "_free", [])
    workforce = inline()
    first = workforce.sample(prompts(5), images_per_prompt=2, seed=1)
    rewards = np.array(first.rewards)
    workforce.release(first)
    second = workforce.sample(prompts(5), images_per_prompt=2, seed=2)
    for name, array in arrays_of(second).items():
        assert np.shares_memory(array, arrays_of(first)[name]), name
    assert not differences(second, inline().sample(prompts(5), images_per_prompt=2, seed=2))
    np.testing.assert_array_equal(first.rewards, rewards)
    with pytest.raises(ValueError, match="released twice"):
        workforce.release(second)
        workforce.release(second)


def test_stored_images_are_scored_as_when_they_were_made_and_need_no_sampler():
    class Broken(StubSampler):
        def sample(self, *arguments, **options):
            raise AssertionError("no sampler takes part")

        load_weights = sample

    made = inline().sample(prompts(5, offset=4), images_per_prompt=2, seed=1)
    workforce = build_workforce(ClusterConfig(), Broken, build_worker, 2)
    seen: list[Rollout] = []
    scored = workforce.score(made.images, prompts(5, offset=4), images_per_prompt=2, on_chunk=seen.append)
    assert not {"rewards", "sub_scores", "images", "texts", "position"} & set(differences(scored, made))
    assert not scored.stored and set(scored.seconds) == {"score", "sampling", "rollout"}
    assert [chunk.prompts.offset for chunk in seen] == [4, 6, 8]
    assert [content(chunk.images) for chunk in seen] == [content(made.images[rows : rows + 4]) for rows in (0, 4, 8)]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((3, 4, 4, 3), np.uint8), r"3 images to score, expected 4 \(2 prompts of 2 images\)"),
        (np.zeros((4, 4, 4, 3)), r"float64 \[4, 4, 4, 3\], expected uint8 \[n, H, W, 3\]"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 \[4, 4, 4\], expected uint8 \[n, H, W, 3\]"),
    ],
)
def test_images_that_are_not_of_the_prompts_are_not_scored(images, message):
    with pytest.raises(ValueError, match=message):
        inline().score(images, prompts(2), images_per_prompt=2)
