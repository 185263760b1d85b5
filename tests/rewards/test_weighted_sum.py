"""Weighted sums: their arithmetic, what is watched, and terms that cannot run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prdp.configuration.compose import Composer
from prdp.rewards import build_reward, check_reward
from prdp.rewards.base import identity_of
from prdp.support.errors import UserError
from prdp.types import UInt8

SUM = "prdp.rewards.weighted_sum.WeightedSum"
REDNESS = {"_target_": "prdp.rewards.redness.Redness"}
MODULE = """\
import numpy as np

class Constant:
    def __init__(self, value, version="1", fault=""):
        self.name, self.version, self.value, self.fault = "constant", version, value, fault
    @classmethod
    def check(cls, value, version="1", fault=""):
        if fault == "weights":
            raise FileNotFoundError("there is no file constant.safetensors")
    def score(self, images, prompts, metadata):
        if self.fault == "raise":
            raise KeyError("no such mood")
        count = len(images) + (self.fault == "long")
        return np.full(count, self.value), {"half": np.full(count, self.value / 2)}
"""


@pytest.fixture
def constant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Dotted path of a reward that always answers the same."""
    (tmp_path / "constants_for_sums.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "constants_for_sums.Constant"


def images(count: int = 2) -> UInt8:
    """Red, then black."""
    pictures = np.zeros((count, 4, 4, 3), np.uint8)
    pictures[0, ..., 0] = 255
    return pictures


def term(target: str, weight: Any = 1.0, **arguments: Any) -> dict[str, Any]:
    return {"weight": weight, "reward": {"_target_": target, **arguments}}


def test_sum_by_hand_with_every_term_alone(constant: str) -> None:
    terms = {
        "red": {"weight": 10, "reward": REDNESS},
        "two": term(constant, -0.5, value=2.0),
        "five": {**term(constant, 99.0, value=5.0), "watch": True},
    }
    reward = build_reward({"_target_": SUM, "terms": terms})
    total, parts = reward.score(images(), ["a", "b"], [{}, {}])
    assert total.tolist() == [9.0, -1.0]
    assert {name: values.tolist() for name, values in parts.items()} == {
        "red": [1.0, 0.0],
        "two": [2.0, 2.0],
        "two/half": [1.0, 1.0],
        "watch/five": [5.0, 5.0],
        "watch/five/half": [2.5, 2.5],
    }


def test_identity_names_terms_versions_and_weights(constant: str) -> None:
    terms = {
        "red": {"weight": 0.05, "reward": REDNESS},
        "seen": {"watch": True, "reward": {"_target_": constant, "value": 1, "version": "7"}},
    }
    assert identity_of(build_reward({"_target_": SUM, "terms": terms})) == {
        "name": "weighted_sum",
        "version": "0.05*red(1), watching seen(7)",
        "terms": {
            "red": {"name": "redness", "version": "1", "weight": 0.05},
            "seen": {"name": "constant", "version": "7", "watch": True},
        },
    }


def test_sums_nest(constant: str) -> None:
    inner = {"_target_": SUM, "terms": {"two": term(constant, 3.0, value=2.0)}}
    reward = build_reward({"_target_": SUM, "terms": {"inner": {"weight": 2.0, "reward": inner}}})
    total, parts = reward.score(images(1), ["a"], [{}])
    assert total.tolist() == [12.0]
    assert set(parts) == {"inner", "inner/two", "inner/two/half"}


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, "terms is {}: must be a mapping"),
        ({"a": 3}, "terms.a=3: must be a mapping with weight and reward"),
        ({"a": {"reward": REDNESS}}, "terms.a.weight=None: must be a finite number other than 0"),
        ({"a": {"weight": 0, "reward": REDNESS}}, "terms.a.weight=0: must be"),
        ({"a": {"weight": "3", "reward": REDNESS}}, "terms.a.weight='3': must be"),
        ({"a": {"weight": float("inf"), "reward": REDNESS}}, "terms.a.weight=inf: must be"),
        ({"a": {"weight": True, "reward": REDNESS}}, "terms.a.weight=True: must be"),
        ({"a": {"weight": 1, "reward": REDNESS, "wieght": 2}}, "terms.a.wieght=2: unknown key. Did you mean 'weight'"),
        ({"a": {"weight": 1, "watch": "no", "reward": REDNESS}}, "terms.a.watch='no': must be true or false"),
        ({"a": {"watch": True, "reward": REDNESS}}, "nothing is left to optimise"),
        ({"mean": {"weight": 1, "reward": REDNESS}}, "terms.mean: a term is named by"),
        ({"a/b": {"weight": 1, "reward": REDNESS}}, "terms.a/b: a term is named by"),
        (
            {"redness": {"weight": 1, "reward": REDNESS}, "rednes": {"weight": 2}},
            "terms.rednes.reward: must be the section of a reward, with _target_. Did you mean 'redness'",
        ),
    ],
)
def test_terms_that_make_no_sum_are_named(terms: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match="reward: ") as caught:
        check_reward("reward", {"_target_": SUM, "terms": terms})
    assert message in str(caught.value)
    with pytest.raises(ValueError) as built:
        build_reward({"_target_": SUM, "terms": terms})
    assert message in str(built.value)


def test_terms_that_cannot_run_fail_at_the_start_by_name(constant: str) -> None:
    terms = {
        "lost": term(constant, value=1, fault="weights"),
        "typo": term("prdp.rewards.redness.Rednes"),
        "stray": term("prdp.rewards.redness.Redness", colour="blue"),
    }
    with pytest.raises(UserError) as caught:
        check_reward("reward", {"_target_": SUM, "terms": terms})
    for line in (
        "terms.lost.reward: there is no file constant.safetensors",
        "terms.typo.reward._target_=prdp.rewards.redness.Rednes: module prdp.rewards.redness has no 'Rednes'",
        "terms.stray.reward.colour=blue: Redness takes no argument 'colour'",
    ):
        assert line in str(caught.value)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raise", "term 'bad' raised KeyError: 'no such mood'"),
        ("long", r"term 'bad' has shape \(3,\), expected \(2,\)"),
    ],
)
def test_terms_that_misbehave_are_named(constant: str, fault: str, message: str) -> None:
    terms = {"red": {"weight": 1, "reward": REDNESS}, "bad": term(constant, value=1, fault=fault)}
    reward = build_reward({"_target_": SUM, "terms": terms})
    with pytest.raises(ValueError, match=message):
        reward.score(images(), ["a", "b"], [{}, {}])


def test_weights_sweep_and_terms_go_and_come_on_the_command_line() -> None:
    line = ["reward=watched_redness", "reward.terms.shapes_judge.weight=1,3"]
    with Composer(line, sweep=True) as composer:
        weights = [job.config.reward["terms"]["shapes_judge"]["weight"] for job in composer.jobs()]
    assert weights == [1, 3]
    line = ["reward=watched_redness", "~reward.terms.redness", "+reward@reward.terms.again.reward=redness"]
    with Composer([*line, "reward.terms.again.watch=true"]) as composer:
        terms = composer.jobs()[0].config.reward["terms"]
    assert terms["again"] == {"reward": REDNESS, "watch": True}
    assert set(terms) == {"shapes_judge", "again"}


def test_the_papers_mixture_is_an_experiment() -> None:
    needed = ["prompts.train.path=owner/name", "reward.terms.aesthetic.reward.path=head.pth"]
    with Composer(["experiment=multi_reward", "reward.terms.hpsv2.watch=true", *needed]) as composer:
        reward = composer.jobs()[0].config.reward
    assert reward["_target_"] == SUM
    seen = {name: (term["weight"], term["watch"]) for name, term in reward["terms"].items()}
    assert seen == {"pickscore": (10.0, False), "hpsv2": (2.0, True), "aesthetic": (0.05, False)}
    targets = [term["reward"]["_target_"].rpartition(".")[2] for term in reward["terms"].values()]
    assert targets == ["PickScore", "HPSv2", "Aesthetic"]
