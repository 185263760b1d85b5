"""Actors give the results of one process, bit for bit, and again after they died."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from cluster_stubs import StubSampler, ThreadReport, build_worker, differences, prompts, weights

from prdp.cluster import build_workforce
from prdp.cluster.base import ClusterError, ClusterSetupError, WeightsMismatchError
from prdp.config import ClusterConfig
from prdp.rewards.scoring import RewardFaultError
from prdp.support.errors import UnfinishedError
from prdp.support.remote_rows import RemoteRows
from prdp.types import Rollout, Weights

pytest.importorskip("ray")


def kill(process: int) -> None:
    """SIGKILL; an idle actor that an earlier test killed is not missed until it is needed."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


REWARD = r"reward 'brightness' \(epoch 3, prompts 2 to 3\)"


def run(
    workforce: Any, faults: Any = None, count: int = 9, published: Weights | None = None, **options: Any
) -> Rollout:
    """Publish and sample, with faults."""
    workforce.publish(published or weights())
    return workforce.sample(prompts(count, faults), images_per_prompt=2, seed=1, **options)


@pytest.fixture(autouse=True)
def everybody_alive(request: pytest.FixtureRequest) -> None:
    """Actors that an earlier test killed are there again."""
    if "shared" in request.fixturenames:
        request.getfixturevalue("shared")._dispatcher.await_ready()


@pytest.fixture(scope="module")
def expected() -> Rollout:
    """What one process makes of the same request."""
    return run(build_workforce(ClusterConfig(), StubSampler, build_worker, 2))


def test_stored_images_get_the_same_rewards_from_actors_even_when_one_dies(shared, expected, tmp_path):
    seen: list[Rollout] = []
    faults = {2: {"reward": "kill", "once": str(tmp_path / "killed")}}
    scored = shared.score(expected.images, prompts(9, faults), images_per_prompt=2, on_chunk=seen.append)
    assert not {"rewards", "sub_scores", "images"} & set(differences(scored, expected))
    assert sorted(chunk.prompts.offset for chunk in seen) == [0, 2, 4, 6, 8]
    assert scored.seconds["sampling"] == 0.0 and scored.seconds["rollout"] > 0.0
    with pytest.raises(RewardFaultError, match=REWARD):
        shared.score(expected.images, prompts(9, {2: {"reward": "raise"}}), images_per_prompt=2)


def test_two_actors_equal_inline_bit_for_bit(shared, expected):
    seen: list[Rollout] = []
    rollout = run(shared, on_chunk=seen.append)
    assert not differences(rollout, expected)
    assert sorted(chunk.prompts.offset for chunk in seen) == [0, 2, 4, 6, 8]
    assert all(chunk.rewards is not None for chunk in seen)
    assert set(rollout.seconds) >= {"sample", "score", "rollout"}
    assert rollout.rewards is not None
    assert shared.reward_identity == {"name": "brightness", "version": "1"}
    assert isinstance(rollout.stored["latents"], RemoteRows)
    assert rollout.stored["log_ratio"].flags.writeable
    assert shared.storage()["store_gib"] > 0.0
    assert shared.storage()["store_spilled_gib"] == 0.0
    assert rollout.rewards.flags.writeable


@pytest.mark.parametrize(("samplers", "reward_actors"), [(1, 1), (4, 2)])
def test_other_numbers_of_actors_equal_inline_bit_for_bit(private_ray, expected, samplers, reward_actors):
    config = ClusterConfig(kind="ray", samplers=samplers, reward_actors=reward_actors)
    workforce = build_workforce(config, StubSampler, build_worker, 2)
    try:
        assert not differences(run(workforce), expected)
    finally:
        workforce.close()
    with pytest.raises(RuntimeError, match="closed"):
        run(workforce)


def test_new_weights_reach_every_sampler(shared):
    first = run(shared)
    shared.publish(weights(6, 2.0))
    second = shared.sample(prompts(9), images_per_prompt=2, seed=1)
    assert (first.weights_version, second.weights_version) == (5, 6)
    assert (second.stored["latents"][:] == first.stored["latents"][:] * 4).all()


def test_scoring_goes_on_while_sampling_does(shared, expected, tmp_path):
    pipe = f"{tmp_path}/pipe"
    os.mkfifo(pipe)
    held_open = os.open(pipe, os.O_RDWR)
    try:
        rollout = run(shared, {0: {"reward": f"tell:{pipe}"}, 8: {"sampler": f"await:{pipe}"}})
    finally:
        os.close(held_open)
    assert not differences(rollout, expected)


def test_sampler_killed_within_a_chunk_is_replaced_with_equal_results(shared, expected, tmp_path):
    before = dict(shared.process_ids)
    rollout = run(shared, {4: {"sampler": "kill", "once": str(tmp_path / "killed")}})
    assert (tmp_path / "killed").exists()
    assert not differences(rollout, expected)
    shared._dispatcher.await_ready()
    assert sum(before[name] != pid for name, pid in shared.process_ids.items()) == 1
    assert not differences(shared.sample(prompts(9), images_per_prompt=2, seed=1), expected)


def test_reward_actor_killed_within_a_chunk_is_replaced_with_equal_results(shared, expected, tmp_path):
    rollout = run(shared, {2: {"reward": "kill", "once": str(tmp_path / "killed")}})
    assert (tmp_path / "killed").exists()
    assert not differences(rollout, expected)


def test_images_lost_before_they_are_scored_are_sampled_again_and_nobody_is_replaced(shared, expected, monkeypatch):
    from prdp.cluster import actor_supervisor
    from prdp.cluster.actor_pool import GoneError

    fetch, lost, before = actor_supervisor.fetch_result, [], dict(shared.process_ids)

    def losing(reference: Any) -> Any:
        answer = fetch(reference)
        if isinstance(answer, tuple) and not lost:  # what a reward actor answers, or that its images are gone
            lost.append(answer)
            raise GoneError("the images are gone")
        return answer

    run(shared)  # so that nobody has weights to bind, which is answered by a tuple, too
    monkeypatch.setattr(actor_supervisor, "fetch_result", losing)
    assert not differences(run(shared), expected)
    assert len(lost) == 1 and len(lost[0]) == 4
    assert shared.process_ids == before


@pytest.fixture
def impatient(shared, monkeypatch, tmp_path) -> tuple[Any, str]:
    """The shared workforce with a time-out for a reward's chunk, and a pipe that nobody ever writes to."""
    monkeypatch.setattr(shared._dispatcher.supervisor.limits["score"], "seconds", 1.0)
    os.mkfifo(tmp_path / "silent")
    return shared, f"hang:{tmp_path}/silent"


def test_reward_actor_that_hangs_is_replaced_with_equal_results(impatient, expected, tmp_path, caplog):
    workforce, hang = impatient
    before = workforce.process_ids["reward actor 0"]
    rollout = run(workforce, {2: {"reward": hang, "once": str(tmp_path / "hung")}})
    assert not differences(rollout, expected)
    workforce._dispatcher.await_ready()
    assert workforce.process_ids["reward actor 0"] != before
    told = "reward actor 0 hung and is restarted: scoring epoch 3, prompts 2 to 3: no answer within cluster.reward_"
    assert told in caplog.text


def test_chunk_that_hangs_every_time_ends_the_run_and_not_the_workforce(impatient, expected):
    workforce, hang = impatient
    message = r"epoch 3, prompts 4 to 5: reward actor 0 hung on this chunk, attempt 3 of 3 \(cluster.retries=2\)"
    with pytest.raises(ClusterError, match=message):
        run(workforce, {4: {"reward": hang}})
    workforce._dispatcher.supervisor.limits["score"].seconds = 0.0
    assert not differences(run(workforce), expected)


@pytest.fixture
def stopped_sampler(shared, monkeypatch) -> Iterator[int]:
    """The process of a sampler that the system has stopped, as a debugger or a stuck disk does."""
    run(shared)
    monkeypatch.setattr(shared._dispatcher.supervisor.limits["sample"], "seconds", 1.0)
    process = shared.process_ids["sampler 0"]
    os.kill(process, signal.SIGSTOP)
    yield process
    kill(process)


def test_stopped_sampler_is_replaced_with_equal_results_and_its_late_answer_dropped(
    shared, stopped_sampler, expected, caplog
):
    rollout = run(shared)
    assert not differences(rollout, expected)
    assert "no answer within cluster.sample_timeout_seconds=1" in caplog.text
    assert "sampler 0 hung and is restarted: " in caplog.text
    os.kill(stopped_sampler, signal.SIGCONT)
    assert not differences(run(shared), expected)
    shared._dispatcher.await_ready()
    assert shared.process_ids["sampler 0"] != stopped_sampler


def test_warnings_of_an_actor_reach_the_driver(shared, caplog):
    run(shared, {2: {"reward": "warn"}})
    assert "reward actor 0: the lamp is dim" in caplog.text


def test_every_process_killed_from_outside_is_replaced(shared, expected):
    victims = list(shared.process_ids.values())

    def kill_all(_: Rollout) -> None:
        while victims:
            kill(victims.pop())

    assert not differences(run(shared, on_chunk=kill_all), expected)


def test_chunk_is_not_blamed_for_actors_that_were_dead_before_they_got_it(shared):
    """Three that nobody misses until they are asked, and two retries."""
    for process in shared.process_ids.values():
        kill(process)
    expected = run(build_workforce(ClusterConfig(), StubSampler, build_worker, 2), count=1)
    assert not differences(run(shared, count=1), expected)


def test_sampler_killed_between_rollouts_is_replaced_and_acknowledges_first(shared):
    run(shared)
    for name in ("sampler 0", "sampler 1"):
        kill(shared.process_ids[name])
    rollout = run(shared, published=weights(6, 2.0))
    assert rollout.weights_version == 6
    assert shared.status()["last_fault"]["text"].startswith("sampler ")


def test_requests_overlap_and_each_keeps_its_weights(shared, tmp_path):
    """The first request waits for a pipe that is only written to when the second one is being scored."""
    pipe = f"{tmp_path}/pipe"
    os.mkfifo(pipe)
    held_open = os.open(pipe, os.O_RDWR)
    try:
        shared.publish(weights(5, 0.5))
        first = shared.submit(prompts(2, {0: {"sampler": f"await:{pipe}"}}), images_per_prompt=2, seed=1)
        shared.publish(weights(6, 2.0))
        second = shared.submit(prompts(9, {8: {"reward": f"tell:{pipe}"}}), images_per_prompt=2, seed=1)
        later, earlier = second.result(), first.result()
    finally:
        os.close(held_open)
    assert (earlier.weights_version, later.weights_version) == (5, 6)
    assert (later.stored["latents"][: len(earlier)] == earlier.stored["latents"][:] * 4).all()


def test_an_urgent_request_overtakes(shared, tmp_path):
    """The request before it cannot end until the urgent one is scored."""
    pipe = f"{tmp_path}/pipe"
    os.mkfifo(pipe)
    held_open = os.open(pipe, os.O_RDWR)
    try:
        shared.publish(weights())
        waiting = {index: {"sampler": f"await:{pipe}", "once": f"{tmp_path}/{index}"} for index in (0, 8, 10)}
        plain = shared.submit(prompts(12, waiting), images_per_prompt=2, seed=1)
        urgent = shared.submit(prompts(2, {0: {"reward": f"tell:{pipe}"}}), images_per_prompt=2, seed=1, urgent=True)
        urgent.result()
        os.write(held_open, b"11")
        assert len(plain.result()) == 24
    finally:
        os.close(held_open)


@pytest.mark.parametrize("fault", ["kill", "vanish"])
def test_chunk_that_kills_every_sampler_ends_the_run_with_the_cause(shared, fault):
    """Also when the process ends by itself, with 0."""
    with pytest.raises(ClusterError, match=r"epoch 3, prompts 4 to 5: sampler \d died .* attempt 3 of 3.*Actor"):
        run(shared, {4: {"sampler": fault}})


def test_wrong_binding_is_refused(shared):
    published = weights(fault="misbound")
    with pytest.raises(WeightsMismatchError, match=rf"sampler \d acknowledged .*{published.checksum} was published"):
        run(shared, published=published)
    assert run(shared).weights_version == 5


def test_rollout_of_other_weights_is_refused(shared):
    with pytest.raises(WeightsMismatchError, match=r"epoch 3, prompts 2 to 3 was made by weights version 4"):
        run(shared, {2: {"sampler": "stale"}})


@pytest.mark.parametrize(
    ("part", "fault", "error", "message"),
    [
        ("reward", "raise", RewardFaultError, rf"^{REWARD} raised ZeroDivisionError: no such mood\n"),
        ("reward", "write", RewardFaultError, rf"^{REWARD} writes into its images, which are read-only: copy"),
        ("reward", "exit", RewardFaultError, rf"^{REWARD} calls sys\.exit\(0\)"),
        ("reward", "nan", RewardFaultError, rf"^{REWARD} returned nan for image 1 of 4"),
        ("reward", "short", RewardFaultError, rf"^{REWARD} has shape \(3,\), expected \(4,\)"),
        ("sampler", "exit", UnfinishedError, r"^sys\.exit\(0\) was called before the work was done\n"),
        ("sampler", "raise", ValueError, r"^latents of step 3 are not finite\n"),
        ("sampler", "raise_awkward", RuntimeError, r"^AwkwardError: unet broke\n"),
    ],
)
def test_errors_of_the_work_come_as_themselves(shared, part, fault, error, message):
    shared.publish(weights())
    before = dict(shared.process_ids)
    with pytest.raises(error, match=message) as caught:
        run(shared, {2: {part: fault}})
    assert type(caught.value) is error
    assert "epoch 3, prompts 2 to 3 (process " in caught.value.__notes__[0]
    if part == "sampler":
        assert "Traceback" in caught.value.__notes__[0]
    elif fault == "raise":
        assert 'cluster_stubs.py", line ' in str(caught.value)
    assert shared.process_ids == before


def test_errors_of_binding_come_as_themselves(shared):
    with pytest.raises(KeyError, match="tensor 'unknown' is not one of the model"):
        run(shared, published=weights(fault="unknown"))


def test_errors_of_building_come_as_themselves(private_ray):
    factory = functools.partial(StubSampler, "nowhere")
    with pytest.raises(FileNotFoundError, match="no model folder 'nowhere'"):
        build_workforce(ClusterConfig(kind="ray"), factory, build_worker, 2)


def test_resources_that_are_not_there_are_named_at_once(private_ray):
    for config, message in (
        (
            ClusterConfig(kind="ray", sampler_gpus=64),
            r"cannot hold 2 samplers of 0 CPU and 64 GPU, .*: in all 0 CPU, 128 GPU; there are 1 node\(s\): .* 0 GPU",
        ),
        (ClusterConfig(kind="ray", samplers=900, address="auto"), r"cannot hold 900 samplers of 1 CPU, .* 901 CPU"),
        (ClusterConfig(kind="ray", reward_resources={"a100_node": 1}), r"1 reward actor of 0 CPU and 1 a100_node"),
    ):
        with pytest.raises(ClusterSetupError, match=message):
            build_workforce(config, StubSampler, build_worker, 2)


@pytest.mark.parametrize(("key", "value"), [("samplers", 0), ("reward_actors", 0), ("retries", -1)])
def test_numbers_that_make_no_cluster_are_named(key, value):
    with pytest.raises(ValueError, match=rf"cluster\.{key} must be .*got {value}"):
        build_workforce(ClusterConfig(kind="ray", **{key: value}), StubSampler, build_worker, 2)


def test_threads_are_set_before_torch_is_imported(private_ray):
    pytest.importorskip("torch")
    workforce = build_workforce(ClusterConfig(kind="ray", samplers=1, threads=3), StubSampler, ThreadReport, 2)
    try:
        rollout = run(workforce, count=2)
    finally:
        workforce.close()
    assert set(rollout.sub_scores["before_torch"]) == {3}
    assert set(rollout.sub_scores["torch"]) == {3}
