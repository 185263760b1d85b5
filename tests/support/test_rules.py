"""Rules stand in annotations: every key of every schema has one, and the types below them are those of OmegaConf."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, get_type_hints

import omegaconf
import pytest

from prdp.commands.pretrain import PretrainConfig
from prdp.commands.reward_server import ServerConfig
from prdp.config import MISSING, SPACINGS, TrainConfig
from prdp.configuration.bounds import broken_rules
from prdp.configuration.key_help import documented
from prdp.configuration.typed import TRAIN, schema_keys
from prdp.evaluation.command_line import EVALUATE
from prdp.evaluation.settings import EvaluateConfig
from prdp.image_sets.settings import GenerateConfig
from prdp.support.rules import AnyText, Count, Positive, Rule, one_of, rule_of, rules_of

SCHEMAS = (TrainConfig, EvaluateConfig, GenerateConfig, PretrainConfig, ServerConfig)


@dataclass
class Inner:
    """Keys below another."""

    limit: Positive | None = None
    note: AnyText | None = None


@dataclass
class Schema:
    """All forms that an annotation with a rule may take."""

    count: Count = 1
    fruits: list[Annotated[str, one_of("apple", "pear")]] = field(default_factory=list)
    pair: Annotated[list[int], Rule(lambda value: len(value) == 2, "two numbers")] = field(
        default_factory=lambda: [1, 2]
    )
    loud: bool = False
    open: dict[str, Any] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_key_has_a_rule_unless_its_type_says_all(schema: type) -> None:
    """Flags need none, and sections of `_target_` or `name` are checked against what they name."""
    leaves = {key: kind for key, kind in schema_keys(schema).items() if not dataclasses.is_dataclass(kind)}
    assert set(rules_of(schema)) == {key for key, kind in leaves.items() if kind not in (bool, dict[str, Any])}


def test_sections_that_are_checked_against_what_they_name() -> None:
    assert set(TRAIN.open_sections) == {"reward", "prompts.train", "prompts.heldout", "objective"}
    assert set(EVALUATE.open_sections) == {"prompts", "rewards", "watch", "features", "samplers"}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_defaults_are_allowed(schema: type) -> None:
    required = ("models", "output_dir") if schema in (EvaluateConfig, GenerateConfig) else ()
    config = dataclasses.replace(schema(), **{key: ["base"] if key == "models" else "x" for key in required})
    if schema is TrainConfig:
        config = dataclasses.replace(config, output_dir="x")
    assert broken_rules(config) == ({}, [])


def test_rules_are_found_in_every_form_of_annotation() -> None:
    rules = rules_of(Schema)
    assert list(rules) == ["count", "fruits", "pair", "inner.limit", "inner.note"]
    assert rules["inner.limit"].words == "a finite number above 0, or null"
    assert [value for value in (None, 2.0, 0.0, float("inf")) if rules["inner.limit"].allows(value)] == [None, 2.0]
    assert rules["inner.note"].choices == ()
    assert rule_of(Annotated[str, one_of(*SPACINGS)] | None).choices == (*SPACINGS, "null")  # type: ignore[union-attr]
    assert rule_of(int) is None and rule_of(list[int]) is None and rule_of(int | None) is None


def test_a_broken_rule_names_the_key_and_each_value() -> None:
    config = Schema(count=0, fruits=["apple", "peer", "fig"], pair=[1], inner=Inner(limit=-1.0))
    wrong, lines = broken_rules(config)
    assert list(wrong) == ["count", "fruits", "pair", "inner.limit"]
    assert lines == [
        "count=0: must be at least 1",
        "fruits=peer: must be one of apple, pear. Did you mean 'pear'?",
        "fruits=fig: must be one of apple, pear",
        "pair=[1]: must be two numbers",
        "inner.limit=-1: must be a finite number above 0, or null",
    ]


def test_help_says_type_and_rule() -> None:
    assert {key.name: key.kind for key in documented(Schema) if not key.is_section} == {
        "count": "integer, at least 1",
        "fruits": "list of text, each one of apple, pear",
        "pair": "list of integer, two numbers",
        "loud": "true or false",
        "open": "mapping",
        "inner.limit": "number, a finite number above 0, or null",
        "inner.note": "text or null",
    }


def test_types_below_the_rules_are_what_omegaconf_converts_to() -> None:
    merged = omegaconf.OmegaConf.merge(
        omegaconf.OmegaConf.structured(Schema), {"count": "3", "inner": {"limit": 2}, "fruits": ["pear"]}
    )
    assert omegaconf.OmegaConf.to_object(merged) == Schema(count=3, fruits=["pear"], inner=Inner(limit=2.0))
    assert isinstance(merged.inner.limit, float)
    with pytest.raises(omegaconf.ValidationError):
        omegaconf.OmegaConf.merge(merged, {"inner": {"limit": "many"}})
    assert get_type_hints(Inner)["limit"] == float | None


def test_the_mark_of_what_must_be_given_is_omegaconfs() -> None:
    assert MISSING == omegaconf.MISSING
    assert omegaconf.OmegaConf.is_missing(omegaconf.OmegaConf.structured(TrainConfig), "output_dir")
