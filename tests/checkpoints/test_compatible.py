"""A checkpoint continues its own run only: same configuration, same reward."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from omegaconf import OmegaConf

from prdp.checkpoints.checkpoint import CheckpointError
from prdp.checkpoints.compatible import check_compatible, check_length, check_same_reward
from prdp.config import TrainConfig

REWARD = {
    "_target_": "reward",
    "weights": [1, 2],
    "url": "http://127.0.0.1:8000",
    "batch_size": 16,
    "terms": {"a": {"weight": 2, "reward": {"_target_": "other", "device": "cpu"}}},
}


def config(**changes: Any) -> dict[str, Any]:
    """A whole configuration with some keys changed; 'a__b' stands for a.b."""
    plain: dict[str, Any] = dataclasses.asdict(TrainConfig(output_dir="run", reward=REWARD))
    plain["prompts"].update(train={"_target_": "source", "path": "a.txt"}, heldout={"_target_": "source"})
    for key, value in changes.items():
        section = plain
        *outer, last = key.split("__")
        for name in outer:
            section = section[name]
        section[last] = value
    return plain


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 500},
        {"output_dir": "elsewhere"},
        {"cluster__kind": "ray", "cluster__samplers": 9},
        {"tracking__wandb": "online"},
        {"evaluation__every": 1},
        {"checkpoint__resume": "auto"},
        {"sampler__microbatch": 1, "learner__microbatch": 1, "sampler__prompts_per_chunk": 1},
        {"learner__gradient_checkpointing": True},
        {"model__device": "cuda"},
        {"reward__url": "http://127.0.0.1:9000", "reward__batch_size": 4},
        {"reward__terms__a__reward__device": "cuda"},
    ],
)
def test_changes_that_leave_the_curve_alone_are_allowed(change):
    check_compatible(config(), config(**change))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("prompts_per_epoch", 1),
        ("images_per_prompt", 2),
        ("updates_per_epoch", 2),
        ("model__path", "other"),
        ("sampler__steps", 9),
        ("sampler__eta", 0.5),
        ("learner__mode", "full"),
        ("learner__lora_rank", 4),
        ("learner__lora_targets", ["to_q"]),
        ("learner__learning_rate", 1e-5),
        ("objective__beta", 1.0),
        ("prompts__train__path", "b.txt"),
        ("reward", {"_target_": "other"}),
        ("reward__terms__a__weight", 3),
    ],
)
def test_changes_that_break_the_curve_are_named_with_both_values(key, value):
    with pytest.raises(CheckpointError) as caught:
        check_compatible(config(), config(**{key: value}))
    message = str(caught.value)
    assert f"  {key.replace('__', '.')}" in message
    assert "in the checkpoint" in message
    assert "output_dir" in message


def test_what_checkpoint_change_names_may_differ_and_is_told():
    change = {"learner__learning_rate": 1e-5, "objective__beta": 1.0}
    allowed = config(**change, checkpoint__change=["learner.learning_rate", "objective.beta"])
    told = check_compatible(config(), allowed)
    assert [line.partition(":")[0] for line in told] == ["learner.learning_rate", "objective.beta"]
    assert told[0].endswith("1e-05 now")
    exact = {"learner__evidence_precision": "tf32", "checkpoint__change": ["learner.evidence_precision"]}
    assert len(check_compatible(config(), config(**exact))) == 1, "as a run that rounding has ended advises"
    with pytest.raises(
        CheckpointError, match=r"(?s)objective.beta.*name what.*checkpoint.change=\[objective.beta\]"
    ) as caught:
        check_compatible(config(), config(**change, checkpoint__change=["learner.learning_rate"]))
    assert "learner.learning_rate" not in str(caught.value)
    with pytest.raises(CheckpointError, match="seed: 0 in the checkpoint") as caught:
        check_compatible(config(), config(seed=1))
    assert "checkpoint.change" not in str(caught.value), "it cannot be changed"


def test_the_length_stays_where_the_learning_rate_follows_from_it():
    decaying = {"learner__schedule": "cosine"}
    with pytest.raises(CheckpointError, match="epochs: 100 in the checkpoint, 500 now"):
        check_compatible(config(epochs=100, **decaying), config(epochs=500, **decaying))
    given = {**decaying, "learner__decay_updates": 100}
    assert check_compatible(config(epochs=100, **given), config(epochs=500, **given)) == []
    change = {"learner__schedule": "linear", "checkpoint__change": ["learner.schedule"]}
    assert len(check_compatible(config(epochs=100), config(epochs=500, **change))) == 1


def test_every_changed_key_is_named_and_absent_ones_too():
    changed = config(seed=4, learner__lora_rank=2)
    del changed["objective"]["name"]
    expected = r"(?s)lora_rank: 16 in .*, 2 now.*objective.name: 'prdp' in .*, absent now.*seed: 0 in"
    with pytest.raises(CheckpointError, match=expected):
        check_compatible(config(), changed)


def test_key_that_the_checkpoint_did_not_know_has_its_default_there():
    saved = config()
    del saved["rollout_policy"], saved["learner"]["ema_decay"]
    check_compatible(saved, config())
    with pytest.raises(CheckpointError, match="rollout_policy: 'current' in the checkpoint, 'reference' now"):
        check_compatible(saved, config(rollout_policy="reference"))


def test_a_knob_that_the_checkpoint_did_not_know_has_its_default_there():
    saved = config(objective={"name": "prdp", "beta": 1.0})
    check_compatible(saved, config(objective={"name": "prdp", "beta": 1.0, "output_dtype": "float32"}))
    with pytest.raises(CheckpointError, match="output_dtype: 'float32' in the checkpoint, 'float16' now"):
        check_compatible(saved, config(objective={"name": "prdp", "beta": 1.0, "output_dtype": "float16"}))


def test_configurations_of_json_and_of_omegaconf_compare():
    check_compatible(json.loads(json.dumps(config())), OmegaConf.create(config()))  # type: ignore[arg-type]


def test_same_reward_passes_and_what_was_not_noted_is_not_compared():
    sum_of_one = {"name": "sum", "version": "2*a(1)", "terms": {"a": {"name": "a", "version": "1", "weight": 2}}}
    check_same_reward(sum_of_one, json.loads(json.dumps(sum_of_one)))
    check_same_reward({}, sum_of_one)
    check_same_reward(sum_of_one, {})


def test_another_version_names_both_and_the_term():
    def of(version: str) -> dict[str, Any]:
        return {"name": "sum", "version": "1", "terms": {"a": {"name": "hps", "version": version, "weight": 2}}}

    with pytest.raises(CheckpointError, match=r"reward: 'hps' version '2' in the checkpoint, 'hps' version '2.1' now"):
        check_same_reward({"name": "hps", "version": "2"}, {"name": "hps", "version": "2.1"})
    with pytest.raises(CheckpointError, match=r"  reward.terms.a: 'hps' version '2' in .*, 'hps' version '3' now"):
        check_same_reward(of("2"), of("3"))
    with pytest.raises(CheckpointError, match=r"reward.terms.a: 'hps' version '2' in the checkpoint, absent now"):
        check_same_reward(of("2"), {"name": "sum", "version": "1"})


def test_a_run_does_not_become_shorter_than_it_is() -> None:
    check_length(2, 2)
    with pytest.raises(CheckpointError, match=r"epochs=1: must be at least 2"):
        check_length(2, 1)
