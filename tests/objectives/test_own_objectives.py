"""Losses from outside the package, named by `objective._target_`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prdp.configuration.bounds import objective_problems
from prdp.configuration.typed import typed
from prdp.objectives import OBJECTIVES, build_objective, objective_mistakes
from prdp.objectives._soundness import method_problem
from prdp.support.errors import ConfigError

LOSSES = '''
import torch
from dataclasses import dataclass
from prdp.evidence import Evidence, OldPolicy
from prdp.objectives import Denoising, Method
from prdp.objectives._knobs import Positive

def pulled(log_ratio: torch.Tensor, log_ratio_old: torch.Tensor, rewards: torch.Tensor, *, strength: Positive = 2.0):
    """Regression of each image's mean log-ratio to its reward."""
    error = strength * log_ratio.mean(1) - rewards
    return error.square().mean(), {"error": error.abs().mean().item()}

def likely(denoising: torch.Tensor, rewards: torch.Tensor):
    return -(denoising.mean(1) * rewards).mean(), {}

best = Method(likely, Denoising(draws=3), linear=("denoising",))

def unknown(log_ratio: torch.Tensor, advantages: torch.Tensor):
    return log_ratio.mean(), {}

def none(rewards: torch.Tensor):
    return rewards.mean(), {}

def anchored(denoising, denoising_old, rewards, *, draws: int = 1):
    return (denoising - denoising_old).mean(), {}

no_old = Method(anchored, Denoising())
clash = Method(anchored, Denoising(), old_policy=OldPolicy())
class_of = Method(likely, Denoising)
few = Method(likely, Denoising(draws=0))
linear = Method(likely, Denoising(), linear=("denoisin",))
unseen = Method(pulled, watched=("kl_old",))
idle_array = Method(likely, Denoising(), only_with={"denoising_ref": "beta"})
idle_knob = Method(likely, Denoising(), only_with={"rewards": "beta"})

def bare(log_ratio, *, beta=1.0):
    return log_ratio.mean(), {}

def required(log_ratio, *, beta: float):
    return log_ratio.mean(), {}

def worded(log_ratio, *, what: str = "x"):
    return log_ratio.mean(), {}

def variadic(log_ratio, *rest):
    return log_ratio.mean(), {}

def remembered(log_ratio, history):
    return log_ratio.mean(), {}

def alone(log_ratio):
    return log_ratio.mean()

def vector(log_ratio):
    return log_ratio.mean(1), {}

def detached(log_ratio):
    return log_ratio.detach().mean(), {}

def half_detached(log_ratio, kl_ref):
    return (log_ratio + kl_ref.detach()).mean(), {}

watching = Method(half_detached, watched=("kl_ref",))

def kind(**members):
    return Method(likely, dataclass(frozen=True)(type("Own", (Denoising,), members))())

class Bare:
    def start(self, chains):
        return self

unnamed = Method(likely, type("Unnamed", (Evidence,), dict.fromkeys(Evidence.__abstractmethods__))())
text = kind(channels="denoising")
channelless = kind(channels=())
other_sampled = kind(sampled=("log_ratio",))
both = kind(data=("denoising",))
other_pass = kind(passes={"other": ("denoising", "old")})
whose = kind(passes={"denoising_old": ("denoising", "odl")})
bare_recorder = kind(recorder=lambda self, arrays: Bare())
no_recorder = kind(recorder=lambda self, arrays: None)
guarded = kind(guard=lambda self, arrays: "denoising")

number = 3
raise_later = lambda: None
'''


@pytest.fixture(autouse=True)
def own_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_losses.py").write_text(LOSSES)
    monkeypatch.syspath_prepend(str(tmp_path))


def section(name: str, **knobs: Any) -> dict[str, Any]:
    return {"name": None, "_target_": f"own_losses.{name}", **knobs}


def test_a_function_is_a_loss_on_trajectories() -> None:
    objective = build_objective(section("pulled", strength=0.5, step_weighting="uniform"))
    ratios, rewards = np.array([[0.1, 0.3], [0.0, -0.2]]), np.array([1.0, 2.0])
    result = objective.coefficients({"log_ratio": ratios}, {"log_ratio_old": ratios, "rewards": rewards})
    error = 0.5 * ratios.mean(1) - rewards
    assert result.loss == pytest.approx((error**2).mean())
    np.testing.assert_allclose(result.tables["log_ratio"], np.tile((error * 0.5 / 2)[:, None], (1, 2)))
    assert result.metrics == {"error": pytest.approx(np.abs(error).mean())}


def test_a_method_says_its_evidence() -> None:
    objective = build_objective(section("best", draws=5))
    assert objective.method.linear == ("denoising",)
    assert getattr(objective.evidence, "draws") == 5  # noqa: B009


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (section("pulled", strength=0.0), r"objective\.strength=0: must be a finite number above 0"),
        (section("pulled", beta=1.0), r"objective\.beta=1: objective\._target_=own_losses\.pulled has no such knob"),
        (section("puled"), r"module own_losses has no 'puled'. Did you mean 'pulled'"),
        (section("unknown"), r"takes 'advantages', which is none of the arrays log_ratio, kl_ref, log_importance"),
        (section("none"), r"must take log_ratio or kl_ref or .* or kl_old, the channels of Trajectory evidence"),
        (section("likely"), r"takes 'denoising', which is none of the arrays .* of Trajectory evidence"),
        (section("likely"), r"a prdp\.objectives\.Method around the loss names other evidence"),
        (section("no_old"), r"takes 'denoising_old', of an old policy; give its Method old_policy=OldPolicy\(\)"),
        (section("clash"), r"has the knob 'draws' twice"),
        (section("class_of"), r"has the evidence <class .*Denoising'>, must be an instance"),
        (section("few"), r"has the knob 'draws' with the default 0: must be at least 1"),
        (section("linear"), r"has 'denoisin' in linear, must be of the arrays that it takes: denoising"),
        (section("unseen"), r"has 'kl_old' in watched, must be of the arrays that it takes: log_ratio"),
        (section("idle_array"), r"has 'denoising_ref' in only_with, must be of the arrays that it takes: den"),
        (section("idle_knob"), r"has 'beta' in only_with, must be of the knobs of the loss: none"),
        (section("bare"), r"has the knob 'beta' without an annotation"),
        (section("required"), r"has the knob 'beta' without a default"),
        (section("worded"), r"has the knob 'what': a knob cannot be a <class 'str'>"),
        (section("variadic"), r"takes \*rest; its parameters have to be named"),
        (section("remembered"), r"takes 'history', and has no knob buffer_size"),
        (section("unnamed"), r"has the evidence Unnamed, which names no channels"),
        (section("text"), r"has the evidence Own with channels='denoising', must be a tuple of names"),
        (section("channelless"), r"has the evidence Own without channels"),
        (section("other_sampled"), r"Own with 'log_ratio' in sampled, must be of the channels: denoising"),
        (section("both"), r"Own with 'denoising' in data, must be of the names of no channel"),
        (section("other_pass"), r"Own with 'other' in passes, must be of the data: denoising_ref, denoising_old"),
        (section("whose"), r"\('denoising', 'odl'\) in passes of 'denoising_old', must be .* \(policy, ref"),
        (section("bare_recorder"), r"whose recorder gives a Bare without needs_reference, needs_float32; must be"),
        (section("no_recorder"), r"whose recorder gives None without needs_reference, needs_float32, start; must be"),
        (section("guarded"), r"whose guard is 'denoising'; must be .* that `sampled` names \(none\), or"),
        (section("number"), r"is a int, must be a loss function or a Method"),
        ({"_target_": "", "strength": 1.0}, r"objective\._target_=: must be a dotted path"),
        ({"_target_": "own_losses.pulled", "name": "prdp"}, r"objective\.name=prdp: must be null beside"),
    ],
)
def test_mistakes_are_named(config: dict[str, Any], message: str) -> None:
    import re

    found = objective_mistakes(config)
    assert len(found) == 1
    assert re.search(message, found[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alone", r"the loss own_losses\.alone returned Tensor, expected a scalar tensor and a dict of counts"),
        ("vector", r"the loss own_losses\.vector returned a tensor of shape \(2,\), expected a scalar"),
        ("detached", r"returned a tensor of shape \(\), expected a scalar tensor that depends on its channels"),
    ],
)
def test_what_a_loss_returns_is_checked(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_objective(section(name)).coefficients({"log_ratio": np.zeros((2, 3))}, {})


def test_a_channel_that_a_loss_only_looks_at_is_named_as_such() -> None:
    channels = {"log_ratio": np.zeros((2, 3)), "kl_ref": np.ones((2, 3))}
    with pytest.raises(ValueError, match=r"own_losses\.half_detached does not depend on 'kl_ref', or on a detached"):
        build_objective(section("half_detached")).coefficients(channels, {})
    tables = build_objective(section("watching")).coefficients(channels, {}).tables
    np.testing.assert_array_equal(tables["kl_ref"], np.zeros((2, 3)))
    np.testing.assert_allclose(tables["log_ratio"], np.full((2, 3), 1 / 6))


def test_reading_a_configuration_imports_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef loss(log_ratio): ...\n")
    content = {
        "output_dir": "x",
        "reward": {"_target_": "prdp.rewards.redness.Redness"},
        "prompts": {"train": {"_target_": "a.b"}, "heldout": {"_target_": "a.b"}},
        "objective": {"name": None, "_target_": "stranger.loss"},
    }
    config = typed(content)
    assert not (tmp_path / "ran").exists()
    config.images_per_prompt = 1
    assert objective_problems(config) == []
    assert (tmp_path / "ran").exists()


def test_what_does_not_fit_the_rest_is_told() -> None:
    content = {
        "output_dir": "x",
        "reward": {"_target_": "prdp.rewards.redness.Redness"},
        "prompts": {"train": {"_target_": "a.b"}, "heldout": {"_target_": "a.b"}},
        "objective": section("pulled"),
        "sampler": {"eta": 0.0},
    }
    [problem] = objective_problems(typed(content))
    assert "no log-prob, and objective._target_=own_losses.pulled is computed from those" in problem
    assert objective_problems(typed({**content, "objective": section("best")})) == []
    with pytest.raises(ConfigError, match=r"objective\.name=nothing: must be one of prdp"):
        typed({**content, "objective": {"name": "nothing"}})


def test_the_methods_of_the_package_fit_together() -> None:
    assert {name: method_problem(method) for name, method in OBJECTIVES.items()} == dict.fromkeys(OBJECTIVES)
