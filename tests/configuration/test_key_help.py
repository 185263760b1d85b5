"""Help about keys: all of them have a meaning, and what is printed is what holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from prdp.cli import main
from prdp.commands.pretrain import PretrainConfig
from prdp.commands.reward_server import ServerConfig
from prdp.config import TrainConfig
from prdp.configuration.compose import Composer
from prdp.configuration.key_help import _defaults, class_help, documented, option_help
from prdp.configuration.typed import TRAIN, conf_folder, groups, schema_keys
from prdp.evaluation.settings import EvaluateConfig
from prdp.support.targets import TARGET


@pytest.mark.parametrize("schema", [TrainConfig, EvaluateConfig, PretrainConfig, ServerConfig])
def test_every_key_has_a_meaning(schema: type) -> None:
    keys = list(documented(schema))
    assert {key.name for key in keys} == set(schema_keys(schema))
    assert [key.name for key in keys if len(key.meaning) < 8] == []


@dataclass
class Undocumented:
    """A schema with a key that lacks its text."""

    first: int = 0
    """The first."""
    second: int = 0
    third: int = 0
    """The third."""


def test_a_key_without_a_text_has_none() -> None:
    assert {key.name: key.meaning for key in documented(Undocumented)} == {
        "first": "The first.",
        "second": "",
        "third": "The third.",
    }


def test_defaults_are_what_is_composed() -> None:
    """Of every key of the schema, against Hydra's own composition."""
    with Composer(["reward=shapes_judge"]) as composer:
        config = composer.jobs()[0].config
    shown = _defaults(TRAIN)
    for key in documented(TrainConfig):
        if key.is_section or key.name == "output_dir" or key.kind == "mapping":
            continue
        value = config
        for part in key.name.split("."):
            value = getattr(value, part)
        assert shown.get(key.name, key.default) == value, key.name


def test_every_option_of_every_group_tells_its_file_and_its_classes() -> None:
    for group, options in groups([conf_folder()]).items():
        for option in options:
            text = option_help(group, option)
            file = conf_folder() / group / f"{option}.yaml"
            content = yaml.safe_load(file.read_text())
            assert all(line.strip() in text for line in file.read_text().splitlines())
            if target := content.get(TARGET):
                assert f"{target.rpartition('.')[2]}(" in text and len(class_help(target).splitlines()) > 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["train", "--help", "learner"],
            [
                "learner: Which weights learn, and how.",
                "learner.learning_rate  (number, a finite number above 0; default 0.0003)",
                "learner.framework  (one of torch, jax; default torch)",
                "0 keeps no moving average",
                "  full  All weights of the network",
            ],
        ),
        (["validate", "evaluation.every", "--help"], ["evaluation.every  (integer, at least 0; default 10)"]),
        (["train", "--help", "learner.adam_"], ["learner.adam_beta1", "learner.adam_beta2", "learner.adam_epsilon"]),
        (["train", "--help", "reward.hpsv2"], ["path: xswu/HPSv2", "HPSv2(path: str, release: str = '2.0'"]),
        (["train", "--help", "objective.prdp"], ["beta: 3.0e-5 # KL weight"]),
        (["train", "-h", "reward"], ["reward  (mapping; default prdp.", "aesthetic ", "LAION's aesthetic"]),
        (["train", "--help", "sampler.steps"], ["sampler.steps  (integer, at least 1", "; default 8)"]),
        (["evaluate", "--help", "seeds", "reward.redness"], ["default [0])", "Noise seeds", "Redness()"]),
        (["evaluate", "--help", "models"], ["models  (list of text, a list of at least one model; must be given)"]),
        (["train", "--help", "sampler.shift"], ["sampler.shift  (number, a finite number above 0, or null; default "]),
        (["train", "--help", "tracking"], ["tracking.wandb_entity  (text or null; default null)"]),
        (
            ["pretrain", "--help"],
            ["vae_steps  (list of integer, each at least 1; default [1800,900,3000])", "Steps of each cosine"],
        ),
    ],
)
def test_topics(words: list[str], says: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    for part in says:
        assert part in out


@pytest.mark.parametrize(
    ("topic", "says"),
    [
        ("learnr", "--help learnr: there is no such key, section or group. Did you mean 'learner'?"),
        ("reward.hpsv", "Did you mean 'reward.hpsv2'"),
        ("lerning_rate", "Did you mean 'learner.learning_rate'?"),
        ("zzzz", "; there are model, sampler, prompts, rollouts, learner, evaluation, cluster"),
    ],
)
def test_an_unknown_topic_suggests(topic: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help", topic]) == 2
    assert says in capsys.readouterr().err


def test_help_of_the_whole_command_names_every_section_and_key_of_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for name in schema_keys(TrainConfig):
        if "." not in name:
            assert name in out


def test_classes_of_others_are_not_described(tmp_path: Path) -> None:
    for name in ("os.system", "prdp.nowhere.Nothing", "prdp.support.targets.Nothing"):
        assert class_help(name) == ""
