"""An aspect as the reward: which number it is, prompts that it does not apply to, and names that there are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from http_rewards import serving

from prdp.configuration.compose import Composer
from prdp.objectives import build_objective
from prdp.rewards import build_reward, check_reward, prompt_checks, size_checks
from prdp.rewards.base import identity_of, waits_of
from prdp.rewards.remote import RemoteReward
from prdp.rewards.scoring import RewardFaultError, scored
from prdp.rewards.sub_score import SubScore
from prdp.support.errors import StartError
from prdp.worlds.shapes.grammar import caption
from prdp.worlds.shapes.render import render
from prdp.worlds.shapes.reward import ShapesJudge
from prdp.worlds.shapes.scene import random_scene

ASPECT = "prdp.rewards.sub_score.SubScore"
SUM = "prdp.rewards.weighted_sum.WeightedSum"
JUDGE = {"_target_": "prdp.worlds.shapes.reward.ShapesJudge"}
REDNESS = {"_target_": "prdp.rewards.redness.Redness"}
NAN = float("nan")


class Table:
    """Sub-scores that a test gives; the reward is 7."""

    name, version = "table", "4"
    waits_seconds, retries_itself = 12.0, True

    def __init__(self, **parts: list[float]) -> None:
        self.parts = parts

    def score(self, images: Any, prompts: Any, metadata: Any) -> Any:
        return np.full(len(images), 7.0), {name: np.array(values) for name, values in self.parts.items()}


def ask(reward: Any, prompts: list[str], metadata: list[dict[str, Any]] | None = None) -> Any:
    images = np.zeros((len(prompts), 8, 8, 3), np.uint8)
    return scored(reward, images, prompts, metadata or [{} for _ in prompts])


def test_an_aspect_of_the_judge_is_its_sub_score_and_the_others_stay() -> None:
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng, count) for count in (1, 2, 2, 3)]
    images = np.stack([render(scene, rng) for scene in scenes])
    prompts = [caption(scene) for scene in scenes[::-1]]
    metadata: list[dict[str, Any]] = [{}] * 4
    expected, parts = ShapesJudge().score(images, prompts, metadata)
    for name in ("color", "shape", "count", "fill"):
        rewards, own = scored(
            build_reward({"_target_": ASPECT, "name": name, "reward": JUDGE}), images, prompts, metadata
        )
        np.testing.assert_array_equal(rewards, parts[name])
        assert np.ptp(rewards) > 0
        assert list(own) == ["whole", *ShapesJudge.sub_score_names]
        np.testing.assert_array_equal(own["whole"], expected)
        np.testing.assert_array_equal(own["relation"], parts["relation"])


def test_a_prompt_that_it_does_not_apply_to_is_a_tie_that_is_left_out_and_counted() -> None:
    table = Table(relation=[NAN, NAN, 0.25, 0.5])
    rewards, parts = ask(SubScore("relation", table), ["one", "one", "two", "two"])
    assert rewards.tolist() == [0.0, 0.0, 0.25, 0.5]
    assert np.isnan(parts["relation"]).tolist() == [True, True, False, False]
    data = {"rewards": rewards, "group_ids": np.array([0, 0, 1, 1])}
    errors = {"denoising": -np.ones((4, 3))}
    result = build_objective({"name": "best_of_n"}).coefficients(errors, data)
    assert result.metrics["groups_tied"] == 1.0
    assert np.flatnonzero(result.tables["denoising"].any(1)).tolist() == [3]


def test_a_single_image_without_a_number_is_refused() -> None:
    """Whatever number it got would rank it among images that the reward has not compared it with."""
    reward = SubScore("relation", Table(relation=[NAN, 0.5, NAN, NAN]))
    with pytest.raises(
        RewardFaultError, match=r"'relation' of reward 'table' is NaN for 1 of 2 images of the prompt 'a'"
    ):
        ask(reward, ["a", "a", "b", "b"])
    told_apart = ask(reward, ["a", "a", "b", "b"], [{"row": 1}, {"row": 2}, {}, {}])[0]
    assert told_apart.tolist() == [0.0, 0.5, 0.0, 0.0]
    with pytest.raises(RewardFaultError, match=r"table\.relation' returned inf for image 0"):
        ask(SubScore("relation", Table(relation=[float("inf")])), ["a"])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"name": "colour", "reward": JUDGE},
            r"name=colour: ShapesJudge has no such sub-score; it has pre.* Did you mean 'color'\?",
        ),
        ({"name": "", "reward": JUDGE}, "name='': must be the name of a sub-score"),
        (
            {"name": "color", "reward": "shapes_judge"},
            "reward='shapes_judge': must be the section .*reward@reward.reward=",
        ),
        ({"name": "color", "reward": {**JUDGE, "strict": 1}}, "strict=1: ShapesJudge takes no argument"),
        ({"name": "x", "reward": {"_target_": "prdp.rewards.vqa.VQAAlignment", "path": "no"}}, "path=no: there is no"),
    ],
)
def test_what_cannot_run_is_refused_at_the_start(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_reward("reward", {"_target_": ASPECT, **section})
    assert str(caught.value).startswith("reward")


def test_a_name_that_only_scoring_tells_is_refused_by_the_first_scores() -> None:
    with pytest.raises(
        RewardFaultError, match=r"colr: reward 'table' has no such sub-score; it has color\. Did you mean 'color'\?"
    ):
        ask(SubScore("colr", Table(color=[1.0])), ["a"])
    with pytest.raises(RewardFaultError, match="name=red: reward 'redness' has no such sub-score; it has none"):
        ask(build_reward({"_target_": ASPECT, "name": "red", "reward": REDNESS}), ["a"])


def test_identity_and_what_it_takes_over() -> None:
    reward = SubScore("color", Table(color=[0.5]))
    assert identity_of(reward) == {"name": "table.color", "version": "1-4"}
    assert (waits_of(reward), reward.retries_itself) == (12.0, True)
    section = {"_target_": ASPECT, "name": "color", "reward": JUDGE}
    [size] = size_checks("reward", section).items()
    assert size == ("reward.reward", ShapesJudge.check_size)
    vqa = {"_target_": "prdp.rewards.vqa.VQAAlignment", "path": "x"}
    asks = {"terms": {"a": {"reward": {"_target_": ASPECT, "name": "without_dependencies", "reward": vqa}}}}
    assert list(prompt_checks("reward", {"_target_": SUM, **asks})) == ["reward.terms.a.reward.reward"]


def test_as_a_term_of_a_sum_and_of_one() -> None:
    terms = {"aspect": {"weight": 2.0, "reward": {"_target_": ASPECT, "name": "count", "reward": JUDGE}}}
    total = build_reward({"_target_": SUM, "terms": terms})
    rewards, parts = ask(total, ["a large solid red circle on a white background"])
    assert rewards.tolist() == (2.0 * parts["aspect"]).tolist()
    assert {"aspect/whole", "aspect/count", "aspect/relation"} < parts.keys()
    again = SubScore("aspect/color", total)
    assert ask(again, ["a large solid red circle on a white background"])[0] == parts["aspect/color"]


def test_served_and_asked_over_http() -> None:
    prompts = ["a large solid red circle on a white background"] * 2
    with serving(build_reward({"_target_": ASPECT, "name": "relation", "reward": JUDGE})) as server:
        client = RemoteReward(f"http://127.0.0.1:{server.server_port}")
        rewards, parts = ask(client, prompts)
        again, _ = ask(SubScore("background", client), prompts)
    assert client.name == "shapes_judge.relation"
    assert rewards.tolist() == [0.0, 0.0] and np.isnan(parts["relation"]).all()
    np.testing.assert_array_equal(again, parts["background"])


def test_chosen_and_swept_on_the_command_line() -> None:
    with Composer(["reward=sub_score", "reward.name=color,shape"], sweep=True) as composer:
        rewards = [job.config.reward for job in composer.jobs()]
    assert rewards == [{"_target_": ASPECT, "name": name, "reward": JUDGE} for name in ("color", "shape")]
    with Composer(["reward=sub_score", "reward.name=x", "reward@reward.reward=redness"]) as composer:
        assert composer.jobs()[0].config.reward["reward"] == REDNESS
    with pytest.raises(StartError, match="ShapesJudge has no such sub-score"):
        check_reward("reward", {**rewards[0], "name": "hue"})
