"""What all objectives have in common: names, knobs, what a configuration may say, linearity, groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from golden import batch, evaluate

import prdp.objectives
from prdp.config import LearnerConfig, RolloutsConfig, SamplerConfig, TrainConfig
from prdp.configuration.bounds import check_bounds
from prdp.configuration.typed import conf_folder
from prdp.objectives import BATCH_ARRAYS, OBJECTIVES, build_objective
from prdp.support.errors import ConfigError

RECIPES = {"prdp_denoising"}
"""Options that are another's knobs with other values."""


def test_names_are_files_and_options() -> None:
    files = {file.stem for file in Path(prdp.objectives.__file__).parent.glob("[!_]*.py")}
    options = {file.stem for file in (conf_folder() / "objective").glob("*.yaml")}
    assert files == set(OBJECTIVES)
    assert options == {*files, "callable", *RECIPES}, "callable names a loss of the user's"


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_yaml_lists_every_knob_with_its_default(name: str) -> None:
    text = (conf_folder() / "objective" / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    defaults = {key: knob.default for key, knob in OBJECTIVES[name].knobs.items()}
    assert yaml.safe_load(text) == {"name": name, **defaults}
    assert all("#" in line for line in text.splitlines()[2:]), "every knob is explained"


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_defaults_are_allowed_and_arrays_known(name: str) -> None:
    method = OBJECTIVES[name]
    assert set(method.linear) <= set(method.arrays)
    for evidence in method.kinds.values():
        assert set(method.arrays) <= {*evidence.channels, *evidence.data, *evidence.derived, *BATCH_ARRAYS}
        choice = {"evidence": evidence.kind} if method.also else {}
        assert build_objective({"name": name, **choice}).channels
    objective = build_objective({"name": name})
    assert build_objective({"name": name, **{key: knob.default for key, knob in method.knobs.items()}}) == objective


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_linear_channels_are(name: str) -> None:
    """Coefficients do not depend on the value of any channel that is said to be linear."""
    first, second = batch(0), batch(1)
    method = OBJECTIVES[name]
    weights = [knob for knob in method.only_with.values() if method.knobs[knob].annotation is not bool]
    idle = {knob: 0.1 for knob in weights if method.knobs[knob].default == 0}
    for kind in method.kinds:
        choice = {"evidence": kind, **idle} if method.also else idle
        linear = build_objective({"name": name, **choice}).linear
        changed = {**first, **{channel: second[channel] for channel in linear}}
        left, right = (evaluate(name, arrays, **choice) for arrays in (first, changed))
        for channel, table in left.tables.items():
            np.testing.assert_array_equal(table, right.tables[channel])


@pytest.mark.parametrize("name", [name for name, method in OBJECTIVES.items() if method.compares_images])
def test_the_order_of_images_across_groups_does_not_matter(name: str) -> None:
    arrays = batch()
    order = np.argsort(np.arange(12) % 4, kind="stable")  # groups interleaved, each in its own order
    del arrays["reward_weights"]
    plain, mixed = evaluate(name, arrays), evaluate(name, {key: value[order] for key, value in arrays.items()})
    assert mixed.loss == pytest.approx(plain.loss, rel=1e-9)
    for channel, table in plain.tables.items():
        np.testing.assert_allclose(mixed.tables[channel], table[order], rtol=1e-9)


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        ({"name": "dppo"}, r"objective\.name=dppo: must be one of prdp, ddpo, .*Did you mean 'ddpo'"),
        ({"name": ["prdp"]}, r"objective\.name=\['prdp'\]: must be one of"),
        ({}, r"objective\.name=None: must be one of"),
        ({"name": "prdp", "eta": 1.0}, r"objective\.eta=1: objective\.name=prdp has no such knob, it takes beta, "),
        (
            {"name": "best_of_n", "step_weighting": "uniform"},
            r"it takes top, least, draws, shared_draws, .*~objective\.st",
        ),
        ({"name": "prdp", "beta": "3e-5"}, r"objective\.beta=3e-5: must be a finite number above 0"),
        ({"name": "prdp", "beta": True}, r"objective\.beta=true: must be a finite number above 0"),
        ({"name": "prdp", "beta": None}, r"objective\.beta=null: must be a finite number above 0"),
        ({"name": "prdp", "pairs": "two"}, r"objective\.pairs=two: must be one of 'all', 'disjoint', 'one'"),
        ({"name": "grpo", "beta": -1}, r"objective\.beta=-1: must be a finite number, at least 0"),
        ({"name": "best_of_n", "top": 1.5}, r"objective\.top=1\.5: must be an integer, at least 1"),
        ({"name": "best_of_n", "least": float("nan")}, r"objective\.least=nan: must be a finite number, or null"),
        (
            {"name": "denoising", "top": 1},
            r"objective\.top=1: objective\.name=denoising has no such knob, it takes draws",
        ),
        ({"name": "diffusion_dpo", "shared_draws": 1}, r"objective\.shared_draws=1: must be true or false"),
        ({"name": "prdp", "evidence": "pixels"}, r"objective\.evidence=pixels: must be one of 'trajectory', 'den"),
        ({"name": "prdp", "draws": 0}, r"objective\.draws=0: must be at least 1"),
        (
            {"name": "prdp", "draws": 4},
            r"objective\.draws=4: has an effect with objective\.evidence=denoising alone; leave it at 8",
        ),
        (
            {"name": "grpo", "evidence": "denoising", "step_weighting": "inverse_sensitivity"},
            r"objective\.step_weighting=inverse_sensitivity: has an effect with objective\.evidence=trajectory alone",
        ),
        (
            {"name": "prdp", "old_is_reference": True},
            r"objective\.old_is_reference=true: trajectory evidence knows no old policy; .* objective\.evidence=den",
        ),
        (
            {"name": "prdp", "evidence": "denoising", "old_decay": 0.5},
            r"objective\.old_decay=0\.5: has an effect with old_samples=true or old_is_reference=true alone",
        ),
        (
            {"name": "crd", "kl": 0.0, "kl_guidance": 4.5},
            r"objective\.kl_guidance=4\.5: has no effect beside objective\.kl=0; leave it at null",
        ),
        (
            {"name": "nft", "kl": 0.0, "old_is_reference": True},
            r"objective\.old_is_reference=true: has no effect beside objective\.kl=0; leave it at false",
        ),
        (
            {"name": "dgpo", "kl": 0.0, "frozen_reference": False, "old_is_reference": True},
            r"old_is_reference=true: has no effect beside objective\.frozen_reference=false and objective\.kl=0",
        ),
        (
            {"name": "awm", "beta_old": 0.0, "old_decay": 0.5},
            r"old_decay=0\.5: has an effect with old_samples=true or old_is_reference=true or beta_old above 0 alone",
        ),
        (
            {"name": "prdp", "evidence": "denoising", "old_samples": True, "old_decay_delay": 5},
            r"objective\.old_decay_delay=5: has no effect beside objective\.old_decay_rise=0; leave it at 0",
        ),
        (
            {"name": "awm", "weighting": "t", "power": 0.5},
            r"objective\.power=0\.5: has no effect beside objective\.weighting=t; leave it at 0\.25",
        ),
        (
            {"name": "reinforce", "buffer_size": 0, "min_count": 5},
            r"objective\.min_count=5: has no effect beside objective\.buffer_size=0; leave it at 16",
        ),
        ({"name": "best_of_n", "top": 8}, r"objective\.top=8: must be below images_per_prompt=8"),
        ({"name": "best_of_n", "noisiest": 1.5}, r"objective\.noisiest=1\.5: must be above 0 and at most 1"),
        ({"name": "ddpo", "buffer_size": 8}, r"objective\.min_count=16: must be at most objective\.buffer_size=8"),
    ],
)
def test_what_a_configuration_may_not_say(objective: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_bounds(TrainConfig(output_dir="x", reward={"_target_": "a.b"}, objective=objective))


def test_all_mistakes_at_once_and_limits_allowed() -> None:
    with pytest.raises(ValueError) as caught:
        build_objective({"name": "ddpo", "clip_range": 0, "beta": 1, "min_count": 0})
    assert len(str(caught.value).splitlines()) == 3
    knobs = build_objective({"name": "ddpo", "clip_range": None, "buffer_size": 0}).knobs
    assert (knobs["clip_range"], knobs["buffer_size"]) == (None, 0)


def test_what_must_fit_the_objective() -> None:
    plain = {"output_dir": "x", "reward": {"_target_": "a.b"}}
    for name in ("ddpo", "denoising"):
        check_bounds(TrainConfig(**plain, objective={"name": name}, images_per_prompt=1))
    check_bounds(TrainConfig(**plain, objective={"name": "crd", "old_decay": 0.5}))  # by a difference to the old policy
    with pytest.raises(ConfigError, match=r"images_per_prompt=1: .* objective\.name=grpo compares images"):
        check_bounds(TrainConfig(**plain, objective={"name": "grpo"}, images_per_prompt=1))
    jax = LearnerConfig(framework="jax")
    for name in ("grpo", "best_of_n"):
        check_bounds(TrainConfig(**plain, objective={"name": name}, learner=jax))


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("prdp", {"sampler": SamplerConfig(window_size=3)}, r"^sampler\.window_size=3: has no .* leave it at 2$"),
        (
            "prdp",
            {"sampler": SamplerConfig(window="fixed", window_end=5, window_every=4)},
            r"^sampler\.window_end=5: has no .*=fixed; leave it at null\nsampler\.window_every=4: has no effect",
        ),
        ("prdp", {"sampler": SamplerConfig(window="random", window_every=4)}, r"^sampler\.window_every=4: has no"),
        ("nft", {"learner": LearnerConfig(ratio_tolerance=1e-3)}, r"^learner\.ratio_tolerance=0\.001: has no effect"),
        (
            "crd",
            {"rollout_policy": "reference", "objective": {"name": "crd", "old_samples": True}},
            r"^objective\.old_samples=true: has no effect with rollout_policy=reference, .* leave it at false$",
        ),
        (
            "nft",
            {"rollouts": RolloutsConfig(source="stored", path="x"), "objective": {"name": "nft", "old_samples": False}},
            r"^objective\.old_samples=false: has no effect with rollouts\.source=stored, .* leave it at true$",
        ),
    ],
)
def test_keys_that_nothing_reads_are_refused(name: str, changes: dict[str, Any], says: str) -> None:
    plain = {"output_dir": "x", "reward": {"_target_": "a.b"}, "objective": {"name": name}}
    with pytest.raises(ConfigError, match=says):
        check_bounds(TrainConfig(**{**plain, **changes}))


def test_shapes_that_do_not_fit_are_named() -> None:
    arrays = batch()
    with pytest.raises(ValueError, match=r"log_importance \(12, 5\), .*rewards \(11,\)"):
        evaluate("ddpo", {**arrays, "rewards": arrays["rewards"][1:]})
    with pytest.raises(ValueError, match=r"log_ratio_old \(12, 4\)"):
        evaluate("prdp", {**arrays, "log_ratio_old": arrays["log_ratio_old"][:, 1:]})
