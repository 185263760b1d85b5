"""Text encoders that learn with their network: against autograd by hand, and against diffusers' own loading."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import compose
from narrow_flow import narrow_pipeline
from narrow_transformers import narrow_flux
from narrow_xl import narrow_xl

from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.configuration.preconditions import model_problems
from prdp.diffusion import build_policy, family_of
from prdp.diffusion.adapter_tensors import LORA_FILE
from prdp.diffusion.pipeline_loading import pipeline_class
from prdp.evaluation.loading import build_evaluated_sampler
from prdp.evaluation.models import find_models
from prdp.learners.optimizers import build_optimizer
from prdp.support.errors import ConfigError, StartError
from prdp.types import Weights

LEARNER = LearnerConfig(lora_rank=2, lora_alpha=3.0, text_encoders=True, text_encoder_targets=["q_proj", "fc1"])
PROMPTS = ["a small red circle", "two blue squares", "a small red circle"]
FAMILIES = ("stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, small_pipeline: Path) -> dict[str, ModelConfig]:
    """Reduced models of the true layouts with random weights."""
    place = tmp_path_factory.mktemp("models")
    narrow_xl().save_pretrained(place / "xl")
    narrow_pipeline().save_pretrained(place / "sd3")
    return {
        "stable_diffusion": ModelConfig(path=str(small_pipeline), device="cpu"),
        "stable_diffusion_xl": ModelConfig(family="stable_diffusion_xl", path=str(place / "xl"), device="cpu"),
        "stable_diffusion_3": ModelConfig(
            family="stable_diffusion_3", path=str(place / "sd3"), max_sequence_length=2, device="cpu"
        ),
    }


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, folders: dict[str, ModelConfig]) -> ModelConfig:
    return folders[request.param]


def moved(weights: Weights, size: float = 0.2) -> Weights:
    rng = np.random.default_rng(0)
    tensors = weights.tensors
    return Weights.of(1, {k: (v + size * rng.normal(size=v.shape)).astype(np.float32) for k, v in tensors.items()})


def policy_of(model: ModelConfig, learner: LearnerConfig = LEARNER, **more: Any) -> Any:
    return build_policy(model, learner, seed=0, **{"keep_reference": True, **more})


def inputs(policy: Any) -> tuple[torch.Tensor, torch.Tensor]:
    latents = torch.randn(3, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([0.3, 0.9, 0.5]) if policy.NETWORK == "transformer" else torch.tensor([300.0, 900.0, 500.0])
    return latents, times


def output(policy: Any, conditions: Any = None, scale: float = 2.0, network: Any = None) -> torch.Tensor:
    conditions = policy.encode(PROMPTS) if conditions is None else conditions
    return policy.output(*inputs(policy), conditions, scale, network)


def test_the_policy_reads_with_its_adapters_and_the_reference_without(model: ModelConfig) -> None:
    """Before a step both are the frozen model; after one, those of diffusers' own layers."""
    policy, plain = policy_of(model), policy_of(model, LearnerConfig(mode="frozen"))
    with torch.no_grad():
        start = output(plain)
        conditions = policy.encode(PROMPTS)
        assert not any(name in conditions.fields for name in ("states", "pooled"))
        torch.testing.assert_close(output(policy, conditions), start, rtol=0, atol=1e-6)
        policy.weights.bind(moved(policy.weights.export(0)))
        after = output(policy, conditions)
        assert not torch.allclose(after, start, atol=1e-3)
        with policy.reference() as network:
            torch.testing.assert_close(output(policy, conditions, network=network), start, rtol=0, atol=1e-6)
        assert torch.equal(output(policy, conditions), after)


def test_the_gradient_is_that_of_autograd_through_encoders_and_network(model: ModelConfig) -> None:
    """By a difference of the loss along the gradient of the text encoders alone, in float64."""
    policy = policy_of(model, keep_reference=False)
    policy.weights.bind(moved(policy.weights.export(0)))
    loss = output(policy).square().sum()
    loss.backward()
    parameters = policy.weights.parameters
    text = {name: value for name, value in parameters.items() if name.startswith("text_encoder")}
    assert {name.partition(".")[0] for name in text} == set(policy.ADAPTED_ENCODERS)
    assert all(value.grad is not None and bool(value.grad.any()) for value in text.values()), "all layers are read"
    assert all(value.grad is not None for value in parameters.values())
    given = {name: value.grad.clone() for name, value in text.items() if value.grad is not None}
    norm = sum(float(value.double().square().sum()) for value in given.values())
    step, sides = 1e-3 / norm**0.5, []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            for name, value in given.items():
                text[name] += sign * step * value
            sides.append(float(output(policy).double().square().sum()))
            for name, value in given.items():
                text[name] -= sign * step * value
    assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(norm, rel=2e-2)


def test_prompts_are_read_once_each(model: ModelConfig) -> None:
    policy = policy_of(model, keep_reference=False)
    seen = []
    policy.pipeline.text_encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[0]))
    conditions = policy.encode(PROMPTS)
    seen.clear()
    with torch.no_grad():
        output(policy, conditions)
    assert seen == [3], "two different prompts and the empty one, of six rows"


def test_known_prompts_are_token_ids_so_that_no_state_is_kept(folders: dict[str, ModelConfig]) -> None:
    model = dataclasses.replace(folders["stable_diffusion"], cached_prompts=8)
    policy = policy_of(model, keep_reference=False)
    policy.encode(PROMPTS)
    with torch.no_grad():
        before = output(policy)
        policy.weights.bind(moved(policy.weights.export(0)))
        text = {name for name in policy.weights.parameters if name.startswith("text_encoder")}
        learned = policy.weights.export(1).tensors
        tensors = {name: value if name in text else 0 * value for name, value in learned.items()}
        policy.weights.bind(Weights.of(2, tensors))
        assert not torch.allclose(output(policy), before, atol=1e-4)


def test_evidence_of_half_precision_is_read_in_float32(folders: dict[str, ModelConfig]) -> None:
    model = folders["stable_diffusion"]
    half, whole = policy_of(dataclasses.replace(model, dtype="bfloat16")), policy_of(model)
    weights = moved(half.weights.export(0))
    with torch.no_grad():
        stored = dict(half.weights.network.named_parameters())
        for name, value in whole.weights.network.named_parameters():
            value.copy_(stored[name])
        for policy in (half, whole):
            policy.weights.bind(weights)
        with half.float32():
            exact = output(half)
        torch.testing.assert_close(exact, output(whole), rtol=0, atol=1e-6)
        assert not torch.allclose(output(half), exact, atol=1e-4)


def test_a_learner_has_text_encoders_and_network_alone(model: ModelConfig, tmp_path: Path) -> None:
    whole, bare = (policy_of(model, only_network=only) for only in (False, True))
    parts = {name for name, part in bare.pipeline.components.items() if isinstance(part, torch.nn.Module)}
    assert parts == {bare.NETWORK, *bare.ADAPTED_ENCODERS}
    weights = moved(whole.weights.export(0))
    conditions = whole.encode(PROMPTS)
    for policy in (whole, bare):
        policy.weights.bind(weights)
    with torch.no_grad():
        assert torch.equal(output(whole, conditions), output(bare, conditions))
    bare.save(tmp_path)
    assert (tmp_path / LORA_FILE).is_file()


@pytest.mark.slow
def test_diffusers_loads_what_is_written(model: ModelConfig, tmp_path: Path) -> None:
    """Its pipeline's own states and network, from the same latents."""
    policy = policy_of(model)
    policy.weights.bind(moved(policy.weights.export(0)))
    policy.save(tmp_path)
    kind: Any = family_of(model)
    without_t5 = dict.fromkeys(kind.FORMAT.optional)
    pipeline = pipeline_class(kind.FORMAT).from_pretrained(model.path, **kind.FORMAT.arguments, **without_t5)
    pipeline.load_lora_weights(tmp_path)
    frozen = policy_of(model, LearnerConfig(mode="frozen"))
    for name in (frozen.NETWORK, *frozen.ADAPTED_ENCODERS):
        setattr(frozen.pipeline, name, getattr(pipeline, name).eval())
    frozen.network = getattr(pipeline, frozen.NETWORK)
    with torch.no_grad():
        torch.testing.assert_close(output(frozen), output(policy), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_file_goes_on_or_stays_frozen(model: ModelConfig, tmp_path: Path) -> None:
    policy = policy_of(model)
    policy.weights.bind(moved(policy.weights.export(0)))
    policy.save(tmp_path)
    with torch.no_grad():
        expected = output(policy)
        frozen = policy_of(dataclasses.replace(model, adapters=[str(tmp_path)]), LearnerConfig(mode="frozen"))
        torch.testing.assert_close(output(frozen), expected, rtol=0, atol=1e-5)
        begun = policy_of(model, dataclasses.replace(LEARNER, init_adapter=str(tmp_path)))
        torch.testing.assert_close(output(begun), expected, rtol=0, atol=1e-6)
        begun.weights.bind(moved(begun.weights.export(0)))
        assert not torch.allclose(output(begun), expected, atol=1e-3)
        with begun.reference() as network:
            torch.testing.assert_close(output(begun, network=network), expected, rtol=0, atol=1e-6)
        both = policy_of(dataclasses.replace(model, adapters=[str(tmp_path)]))
        torch.testing.assert_close(output(both), expected, rtol=0, atol=1e-5)
    with pytest.raises(StartError, match=r"adapts text_encoder.* too: set learner\.text_encoders=true"):
        policy_of(model, dataclasses.replace(LEARNER, text_encoders=False, init_adapter=str(tmp_path)))


def test_evaluations_read_by_both_when_they_measure_a_distance(folders: dict[str, ModelConfig], tmp_path: Path) -> None:
    model = folders["stable_diffusion"]
    policy = policy_of(model)
    with torch.no_grad():
        start = output(policy)
        policy.weights.bind(moved(policy.weights.export(0)))
        policy.save(tmp_path)
        expected = output(policy)
        [found] = find_models([str(tmp_path / LORA_FILE)], model)
        for kl in (False, True):
            sampler: Any = build_evaluated_sampler(found, SamplerConfig(steps=2), "float32", "cpu", None, kl=kl)
            judged = sampler.policy
            torch.testing.assert_close(output(judged), expected, rtol=0, atol=1e-5)
        with judged.reference() as network:
            torch.testing.assert_close(output(judged, network=network), start, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"learner.text_encoders": True, "learner.mode": "full"}, "needs learner.mode=lora, not full"),
        ({"learner.text_encoders": True, "learner.framework": "jax"}, "must be false for learner.framework=jax"),
        ({"learner.text_encoders": True, "model.offload_encoders": True}, "needs model.offload_encoders=false"),
        ({"learner.text_encoders": True, "cluster.colocate": True}, "needs cluster.colocate=false"),
        ({"learner.text_encoder_learning_rate": 0.1}, "needs learner.text_encoders=true; leave it at null"),
        (
            {
                "learner.text_encoders": True, "learner.text_encoder_learning_rate": 0.1,
                "learner.optimizer": "prodigy", "learner.learning_rate": 1.0,
            },
            "must be null for learner.optimizer=prodigy",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(changes: dict[str, Any], says: str) -> None:
    words = [f"{key}={str(value).lower()}" for key, value in changes.items()]
    with pytest.raises(ConfigError, match=says):
        compose("experiment=shapes_smoke", "output_dir=x", *words)


def test_families_and_layers_that_take_no_adapter_are_named(folders: dict[str, ModelConfig], tmp_path: Path) -> None:
    narrow_flux().save_pretrained(tmp_path)
    flux = ModelConfig(family="flux", path=str(tmp_path), device="cpu")
    problems = model_problems(flux, SamplerConfig(kind="flow_sde", steps=2), LEARNER)
    assert any(one.startswith("learner.text_encoders=true: must be false for model.family=flux") for one in problems)
    wrong = dataclasses.replace(LEARNER, text_encoder_targets=["to_q"])
    problems = model_problems(folders["stable_diffusion"], SamplerConfig(), wrong)
    assert problems[0] == "learner.text_encoder_targets: 'to_q' matches no layer of CLIPTextModel"


def test_adapters_of_text_encoders_have_a_rate_of_their_own() -> None:
    """AdamW's first step is the rate, whatever the gradient."""
    config = LearnerConfig(learning_rate=0.1, text_encoder_learning_rate=0.02, weight_decay=0.0, text_encoders=True)
    for optimizer in ("adamw", "adamw_fused"):
        names = ("unet.a", "text_encoder.b", "text_encoder_2.c")
        parameters = {name: torch.nn.Parameter(torch.zeros(2)) for name in names}
        for value in parameters.values():
            value.grad = torch.ones(2)
        build_optimizer(dataclasses.replace(config, optimizer=optimizer), parameters).step(0.05)
        steps = [-float(value[0]) for value in parameters.values()]
        assert steps == pytest.approx([0.05, 0.01, 0.01])
