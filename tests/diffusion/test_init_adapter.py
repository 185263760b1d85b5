"""An adapter that goes on learning, from its file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_exports import ATTENTION, LEARNER, SAMPLER, diffusers_output, exported, moved, output, policy_of
from safetensors.torch import load_file

from prdp.checkpoints.checkpoint import CheckpointError
from prdp.checkpoints.compatible import check_compatible
from prdp.config import ModelConfig
from prdp.configuration.bounds import check_family
from prdp.configuration.preconditions import model_problems
from prdp.configuration.typed import typed
from prdp.diffusion.adapter_tensors import LORA_FILE
from prdp.diffusion.adapters import endings
from prdp.evaluation.loading import build_evaluated_sampler
from prdp.evaluation.models import EvaluatedModel, find_models, model_digest
from prdp.support.errors import ConfigError, StartError

MINIMAL: dict[str, Any] = {
    "prompts": {"train": {"_target_": "a.b"}, "heldout": {"_target_": "a.b"}},
    "reward": {"_target_": "a.b"},
    "output_dir": "x",
}


@pytest.fixture(scope="module")
def begun(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, learner = tmp_path_factory.mktemp("begun"), dataclasses.asdict(LEARNER)
    return exported(ModelConfig(path=str(folder)), path, 5, **learner)


def test_an_adapter_goes_on_from_its_file(folder: Path, style: Path, begun: Path, tmp_path: Path) -> None:
    model = ModelConfig(path=str(folder), adapters=[str(style)], adapter_weights=[0.5])
    learner = dataclasses.replace(LEARNER, init_adapter=str(begun))
    policy = policy_of(model, learner)
    assert len(policy.weights.parameters) == len(load_file(begun))
    expected = diffusers_output(folder, [style, begun], [0.5, 1.0])
    torch.testing.assert_close(output(policy.network), expected, rtol=0, atol=1e-6)
    with policy.reference() as reference:
        assert torch.equal(output(reference), output(policy.network))
    policy.weights.bind(moved(policy.weights.export(0)))
    with policy.reference() as reference:
        torch.testing.assert_close(output(reference), expected, rtol=0, atol=1e-6)
    policy.save(tmp_path)
    file = tmp_path / LORA_FILE
    assert load_file(file).keys() == load_file(begun).keys()
    after = diffusers_output(folder, [style, file], [0.5, 1.0])
    torch.testing.assert_close(output(policy.network), after, rtol=0, atol=1e-6)
    late = policy_of(model, learner, keep=False)
    with pytest.raises(RuntimeError, match="was not kept"), late.reference():
        pass
    late.weights.keep_reference()
    with late.reference() as reference:
        torch.testing.assert_close(output(reference), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lora_rank": 4}, "has rank 2: learner.lora_rank=4 must be the same; set 2"),
        ({"lora_alpha": 4.0}, "has alpha 3: learner.lora_alpha=4 must be the same; set 3"),
        ({"lora_targets": ATTENTION}, r"set learner.lora_targets=\[conv1,to_q\]"),
    ],
)
def test_an_adapter_that_goes_on_is_described_by_the_configuration(
    folder: Path, begun: Path, changes: dict[str, Any], told: str
) -> None:
    learner = dataclasses.replace(LEARNER, init_adapter=str(begun), **changes)
    model = ModelConfig(path=str(folder))
    (problem,) = model_problems(model, SAMPLER, learner)
    with pytest.raises(StartError, match=told) as caught:
        policy_of(model, learner)
    assert str(caught.value) == problem


def test_one_that_goes_on_has_one_rank(folder: Path, peft_folder: Path) -> None:
    learner = dataclasses.replace(LEARNER, init_adapter=str(peft_folder))
    (problem,) = model_problems(ModelConfig(path=str(folder)), SAMPLER, learner)
    assert "has several ranks (2, 3) or alphas" in problem


def test_ends_of_names_are_as_short_as_can_be() -> None:
    modules = ["a.attn1.to_q", "a.attn2.to_q", "a.ff", "a.ff.net.2", "b.net.2", "proj_out", "a.proj_out"]
    assert endings(["a.attn1.to_q", "a.attn2.to_q", "a.ff.net.2"], modules) == ["ff.net.2", "to_q"]
    assert endings(["a.proj_out"], modules) == ["a.proj_out"]


@pytest.mark.slow
@pytest.mark.filterwarnings("error:Already found a .peft_config")
def test_evaluations_take_the_start_along(folder: Path, style: Path, begun: Path, tmp_path: Path) -> None:
    model = ModelConfig(path=str(folder), adapters=[str(style)], adapter_weights=[0.5])
    learner = dataclasses.replace(LEARNER, init_adapter=str(begun))
    policy = policy_of(model, learner)
    start = output(policy.network)
    policy.weights.bind(moved(policy.weights.export(0)))
    policy.save(tmp_path)
    (base, lora) = find_models(["base", str(tmp_path / LORA_FILE)], model)
    plain = dataclasses.replace(model, adapters=[], adapter_weights=[])
    assert len({model_digest(one) for one in (base, lora, dataclasses.replace(base, model=plain))}) == 3
    for found, kl in ((base, False), (lora, False), (lora, True)):
        sampler: Any = build_evaluated_sampler(found, SAMPLER, "float32", "cpu", None, kl=kl)
        network = sampler._policy.network
        expected = diffusers_output(folder, [style], [0.5]) if found is base else output(policy.network)
        torch.testing.assert_close(output(network), expected, rtol=0, atol=1e-6)
        with sampler._policy.reference() as reference:
            before = diffusers_output(folder, [style], [0.5])
            torch.testing.assert_close(output(reference), before, rtol=0, atol=1e-6)
    assert not torch.allclose(start, before, atol=1e-3)
    checkpoint = EvaluatedModel("c", "checkpoint", model, tmp_path, learner=learner)
    assert checkpoint.start == str(begun)


def test_a_run_that_resumes_names_the_same_adapters() -> None:
    def saved(**sections: dict[str, Any]) -> dict[str, Any]:
        return dataclasses.asdict(typed({**MINIMAL, **sections}))

    before = saved()
    now = saved(model={"adapters": ["a.safetensors"]}, learner={"init_adapter": "b"})
    check_compatible(now, now)
    with pytest.raises(CheckpointError, match=r"(?s)learner\.init_adapter: None .*model\.adapters: \[\] .*'a\.safe"):
        check_compatible(before, now)
    for section, keys in (("model", ("adapters", "adapter_weights")), ("learner", ("init_adapter",))):
        for key in keys:
            del before[section][key]
    check_compatible(before, saved())


def test_keys_that_do_not_fit_together_are_told() -> None:
    changes: dict[str, Any] = {"model": {"adapters": ["a"], "adapter_weights": [1.0, float("nan")]}}
    with pytest.raises(ConfigError, match=r"adapter_weights=nan: must be a finite number"):
        typed({**MINIMAL, **changes})
    changes["model"]["adapter_weights"] = [1.0, 2.0]
    changes["learner"] = {"mode": "full", "init_adapter": "b"}
    with pytest.raises(ConfigError, match=r"(?s)has 2 numbers: must be one for each .*needs learner\.mode=lora"):
        typed({**MINIMAL, **changes})
    changes = {"model": {"family": "gaussian_mixtures", "adapters": ["a"]}, "learner": {"init_adapter": "b"}}
    with pytest.raises(ConfigError, match=r"(?s)model\.adapters=\['a'\]: .*learner\.init_adapter=b: must be null"):
        check_family(typed({**MINIMAL, **changes}))
