"""Frozen adapters and an adapter that goes on learning, against diffusers' and peft's own loading."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline, UNet2DConditionModel
from narrow_flow import narrow_pipeline
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from usage_program import run_program

from prdp.checkpoints.checkpoint import CheckpointError
from prdp.checkpoints.compatible import check_compatible
from prdp.config import LearnerConfig, ModelConfig, SamplerConfig
from prdp.configuration.bounds import check_family
from prdp.configuration.preconditions import model_problems
from prdp.configuration.typed import typed
from prdp.diffusion import build_policy, family_of
from prdp.diffusion.adapter_tensors import LORA_FILE, PEFT_CONFIG, PEFT_FILE
from prdp.diffusion.adapters import endings
from prdp.diffusion.noise import ImageNoise
from prdp.diffusion.sampler import Sampler
from prdp.evaluation.loading import build_evaluated_sampler
from prdp.evaluation.models import EvaluatedModel, find_models, model_digest
from prdp.support.errors import ConfigError, StartError
from prdp.types import PromptBatch, Weights

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LEARNER = LearnerConfig(lora_rank=2, lora_alpha=3.0, lora_targets=["to_q", "conv1"])
SAMPLER = SamplerConfig(steps=4, guidance_scale=2.0)
PROMPT = "a small red circle"
MINIMAL: dict[str, Any] = {
    "prompts": {"train": {"_target_": "a.b"}, "heldout": {"_target_": "a.b"}},
    "reward": {"_target_": "a.b"},
    "output_dir": "x",
}
FLOW_TARGETS = ["attn.to_q", "attn.add_q_proj", "proj_out"]


@pytest.fixture(scope="module")
def folder(small_pipeline: Path) -> Path:
    return small_pipeline


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    path = tmp_path_factory.mktemp("sd3")
    narrow_pipeline().save_pretrained(path)
    return ModelConfig(family="stable_diffusion_3", path=str(path), max_sequence_length=2, device="cpu")


def moved(weights: Weights, seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)
    tensors = weights.tensors
    return Weights.of(1, {k: (v + 0.2 * rng.normal(size=v.shape)).astype(np.float32) for k, v in tensors.items()})


def policy_of(model: ModelConfig, learner: LearnerConfig = LEARNER, *, keep: bool = True) -> Any:
    return build_policy(model, learner, seed=0, keep_reference=keep)


def exported(model: ModelConfig, folder: Path, seed: int = 0, **learner: Any) -> Path:
    """A file of diffusers with factors away from zero."""
    policy = policy_of(model, LearnerConfig(**learner), keep=False)
    policy.weights.bind(moved(policy.weights.export(0), seed))
    policy.save(folder)
    return folder / LORA_FILE


@pytest.fixture(scope="module")
def style(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("style")
    return exported(ModelConfig(path=str(folder)), path, lora_rank=4, lora_alpha=6.0, lora_targets=ATTENTION)


@pytest.fixture(scope="module")
def peft_model(folder: Path) -> Any:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    torch.manual_seed(3)
    settings = LoraConfig(
        r=2, lora_alpha=7, target_modules=["to_q", "proj_in", "conv2"], init_lora_weights=False,
        rank_pattern={"conv2": 3}, alpha_pattern={"proj_in": 1}, use_rslora=True,
    )  # fmt: skip
    return get_peft_model(unet, settings)


@pytest.fixture(scope="module")
def peft_folder(peft_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peft")
    peft_model.save_pretrained(path)
    return path


def kohya(file: Path, folder: Path, alpha: Callable[[str], float]) -> Path:
    """A file of diffusers under the names of kohya's trainer."""
    found: dict[str, torch.Tensor] = {}
    for name, value in load_file(file).items():
        layer, _, part = name.removeprefix("unet.").partition(".lora_")
        key = f"lora_unet_{layer.replace('.', '_')}"
        found[f"{key}.lora_{'down' if part.startswith('A') else 'up'}.weight"] = value
        found[f"{key}.alpha"] = torch.tensor(alpha(layer))
    save_file(found, folder / "kohya.safetensors")
    return folder / "kohya.safetensors"


@torch.no_grad()
def output(network: Any, model: ModelConfig | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if model is not None and model.family == "stable_diffusion_3":
        latents, states = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 192, generator=generator)
        pooled = torch.randn(2, network.config.pooled_projection_dim, generator=generator)
        times = torch.tensor([900.0, 30.0])
        return network(latents, states, pooled, times, return_dict=False)[0]
    latents, states = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 16, generator=generator)
    return network(latents, torch.tensor([900, 30]), states, return_dict=False)[0]


def diffusers_output(folder: Path, files: list[Path], weights: list[float]) -> torch.Tensor:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    names = [f"a{number}" for number in range(len(files))]
    for file, name in zip(files, names, strict=True):
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    pipeline.set_adapters(names, weights)
    return output(pipeline.unet)


def test_frozen_adapters_are_those_of_diffusers(folder: Path, style: Path, tmp_path: Path) -> None:
    base = ModelConfig(path=str(folder))
    other = exported(base, tmp_path, 1, lora_rank=3, lora_alpha=2.0, lora_targets=["to_k", "conv1", "linear_1"])
    third = kohya(style, tmp_path, lambda layer: 2.5)
    files, weights = [style, other, third], [0.7, 1.0, -0.4]
    model = ModelConfig(path=str(folder), adapters=[str(style.parent), *map(str, files[1:])], adapter_weights=weights)
    expected = diffusers_output(folder, files, weights)
    assert (expected - output(policy_of(base).network)).abs().max() > 1e-2
    for learner in (LEARNER, LearnerConfig(mode="frozen")):
        torch.testing.assert_close(output(policy_of(model, learner).network), expected, rtol=0, atol=1e-6)
    fused = policy_of(model, LearnerConfig(mode="full"))
    torch.testing.assert_close(output(fused.network), expected, rtol=1e-4, atol=1e-5)
    with fused.reference() as reference:
        assert torch.equal(output(reference), output(fused.network))


def test_a_folder_of_peft_is_what_peft_computes(
    folder: Path, peft_folder: Path, peft_model: Any, style: Path
) -> None:
    policy = policy_of(ModelConfig(path=str(folder), adapters=[str(peft_folder)]))
    torch.testing.assert_close(output(policy.network), output(peft_model), rtol=0, atol=1e-6)
    both = policy_of(ModelConfig(path=str(folder), adapters=[str(peft_folder), str(style)]))
    assert (output(both.network) - output(peft_model)).abs().max() > 1e-2


def test_the_start_is_the_reference_and_one_adapter_learns(folder: Path, style: Path, peft_folder: Path) -> None:
    model = ModelConfig(path=str(folder), adapters=[str(style), str(peft_folder)], adapter_weights=[0.5, 2.0])
    policy = policy_of(model)
    plain = policy_of(ModelConfig(path=str(folder)))
    assert policy.weights.parameters.keys() == plain.weights.parameters.keys()
    assert policy.weights.export(0).checksum == plain.weights.export(0).checksum
    start = output(policy.network)
    with policy.reference() as reference:
        assert torch.equal(output(reference), start)
    frozen = {n: v.clone() for n, v in policy.network.named_parameters() if n not in policy.weights.parameters}
    latents, states = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    policy.network(latents, torch.tensor([900, 30]), states, return_dict=False)[0].square().sum().backward()
    with_gradient = {name for name, value in policy.network.named_parameters() if value.grad is not None}
    assert with_gradient == policy.weights.parameters.keys()
    assert any(value.grad.any() for value in policy.weights.parameters.values())
    policy.weights.bind(moved(policy.weights.export(0)))
    assert not torch.allclose(output(policy.network), start, atol=1e-3)
    with policy.reference() as reference:
        assert torch.equal(output(reference), start)
    for name, value in policy.network.named_parameters():
        assert name in policy.weights.parameters or torch.equal(value, frozen[name])


def test_half_precision_starts_at_the_reference(folder: Path, style: Path) -> None:
    model = ModelConfig(path=str(folder), adapters=[str(style)], dtype="bfloat16")
    latents, times = torch.randn(2, 4, 8, 8), torch.tensor([900, 30])
    for mode in ("lora", "full"):
        policy = policy_of(model, dataclasses.replace(LEARNER, mode=mode))
        conditions = policy.encode([PROMPT] * 2)
        with torch.no_grad(), policy.float32(), policy.reference() as reference:
            theirs = policy.output(latents, times, conditions, 1.0, reference)
        with torch.no_grad(), policy.float32():
            assert torch.equal(policy.output(latents, times, conditions, 1.0), theirs)


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


def harmed(style: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    state = load_file(style)
    change(state)
    save_file(state, folder / "harmed.safetensors")
    return folder / "harmed.safetensors"


def no_such_layer(state: dict[str, torch.Tensor]) -> None:
    state["unet.down_blocks.7.to_q.lora_A.weight"] = torch.ones(4, 8)


def wrong_shape(state: dict[str, torch.Tensor]) -> None:
    name = next(name for name in state if "to_q.lora_A" in name)
    state[name] = torch.ones(4, 5)


def half_a_layer(state: dict[str, torch.Tensor]) -> None:
    del state[next(name for name in state if "to_q.lora_B" in name)]


def text_encoder(state: dict[str, torch.Tensor]) -> None:
    state["text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"] = torch.ones(4, 16)


def no_lora(state: dict[str, torch.Tensor]) -> None:
    state["unet.conv_in.bias"] = torch.ones(8)


def of_a_transformer(state: dict[str, torch.Tensor]) -> None:
    state.clear()
    state["transformer.blocks.0.attn.to_q.lora_A.weight"] = torch.ones(4, 8)


def not_finite(state: dict[str, torch.Tensor]) -> None:
    state[next(iter(state))].fill_(float("nan"))


def dora(state: dict[str, torch.Tensor]) -> None:
    state["unet.mid_block.dora_scale"] = torch.ones(1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (no_such_layer, r"down_blocks\.7\.to_q\.lora_A\.weight: UNet2DConditionModel has no .* 'down_blocks\.7\.to_q'"),
        (wrong_shape, r"to_q\.lora_A\.weight: has shape \[4, 5\], expected \[4, 8\]"),
        (half_a_layer, r"to_q\.lora_A\.weight: its other factor, up \(lora_B\), is missing"),
        (text_encoder, r"q_proj\.lora_A\.weight: its other factor, up \(lora_B\), is missing"),
        (no_lora, r"unet\.conv_in\.bias: is no factor of a LoRA of the unet"),
        (of_a_transformer, r"is no factor of a LoRA of the unet; it is of a transformer, which other families have"),
        (not_finite, r"lora_A\.weight: must hold finite numbers"),
        (dora, r"unet\.mid_block\.dora_scale: DoRA is not computed"),
    ],
)
def test_no_part_of_a_file_is_left_out(
    folder: Path, style: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], told: str
) -> None:
    file = harmed(style, tmp_path, change)
    model = ModelConfig(path=str(folder), adapters=[str(style), str(file)])
    with pytest.raises(StartError, match=rf"^model\.adapters: {file}: .*{told}"):
        family_of(model).check(model)


def test_kohyas_files_are_read_whole_or_refused(folder: Path, style: Path, tmp_path: Path) -> None:
    file = kohya(style, tmp_path, lambda layer: 1.0 if "attn1" in layer else 3.0)
    model = ModelConfig(path=str(folder), adapters=[str(file)])
    with pytest.raises(StartError, match=r"diffusers scales layer .*to_\w+.* and the file's alpha / rank is"):
        family_of(model).check(model)
    state = load_file(file)
    save_file({**state, "lora_unet_mid_block_gone.lora_down.weight": torch.ones(1, 1)}, file)
    with pytest.raises(StartError, match=r"diffusers makes no LoRA of its tensors: .*lora_unet_mid_block_gone"):
        family_of(model).check(model)
    save_file({**state, "lora_te_text_model.alpha": torch.ones(())}, file)
    with pytest.raises(StartError, match=r"lora_te_text_model\.alpha"):
        family_of(model).check(model)


def test_what_is_no_safetensors_file_is_never_opened(folder: Path, style: Path, tmp_path: Path) -> None:
    def told(path: Path) -> str:
        model = ModelConfig(path=str(folder), adapters=[str(path)])
        (problem,) = model_problems(model, SAMPLER)
        return problem

    torch.save({}, tmp_path / "pytorch_lora_weights.bin")
    assert told(tmp_path).endswith("pytorch_lora_weights.bin is a pickle, which may run code and is never opened")
    assert "must be a .safetensors file" in told(tmp_path / "pytorch_lora_weights.bin")
    (tmp_path / "pytorch_lora_weights.bin").rename(tmp_path / "renamed.safetensors")
    assert "cannot be read as safetensors" in told(tmp_path / "renamed.safetensors")
    assert "there is no such file or folder" in told(tmp_path / "absent.safetensors")
    assert "holds neither" in told(folder)
    (tmp_path / "run" / "weights").mkdir(parents=True)
    (tmp_path / "run" / "weights" / LORA_FILE).write_bytes(style.read_bytes())
    assert told(tmp_path / "run").endswith("adapter_model.safetensors; take its folder weights")
    (tmp_path / PEFT_FILE).write_bytes(style.read_bytes())
    assert f"{PEFT_CONFIG} is missing" in told(tmp_path)
    for content, problem in (
        ({"peft_type": "LOHA"}, "peft_type=LOHA: must be LORA"),
        ({"peft_type": "LORA", "r": 4}, "lora_alpha is missing"),
        ({"peft_type": "LORA", "r": 4, "lora_alpha": 4, "init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
    ):
        (tmp_path / PEFT_CONFIG).write_text(json.dumps(content))
        assert problem in told(tmp_path)


def test_transformers_take_adapters_too(flow: ModelConfig, tmp_path: Path) -> None:
    first = exported(flow, tmp_path / "first", 0, lora_rank=4, lora_alpha=6.0, lora_targets=["attn.to_q", "ff.net.2"])
    begun = exported(flow, tmp_path / "second", 1, lora_rank=2, lora_alpha=3.0, lora_targets=FLOW_TARGETS)
    model = dataclasses.replace(flow, adapters=[str(first)], adapter_weights=[0.5])
    learner = dataclasses.replace(LEARNER, lora_targets=FLOW_TARGETS, init_adapter=str(begun))
    assert model_problems(model, SamplerConfig(kind="cps", eta=0.8, steps=4, guidance_scale=1.0), learner) == []
    pipeline = StableDiffusion3Pipeline.from_pretrained(flow.path, text_encoder_3=None, tokenizer_3=None)
    for name, file in (("first", first), ("second", begun)):
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    pipeline.set_adapters(["first", "second"], [0.5, 1.0])
    policy = policy_of(model, learner)
    torch.testing.assert_close(output(policy.network, flow), output(pipeline.transformer, flow), rtol=0, atol=1e-6)
    with policy.reference() as reference:
        assert torch.equal(output(reference, flow), output(policy.network, flow))
    unknown = {f"lora_unet_x.lora_{part}.weight": torch.ones(1, 1) for part in ("up", "down")}
    save_file(unknown, tmp_path / "k.safetensors")
    with pytest.raises(StartError, match=r"k\.safetensors: lora_unet_x\.lora_\w+\.weight"):
        family_of(flow).check(dataclasses.replace(flow, adapters=[str(tmp_path / "k.safetensors")]))


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_the_program_beside_an_export_makes_the_pictures_of_the_sampler(
    folder: Path, style: Path, peft_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    model = ModelConfig(path=str(folder), adapters=[str(style), str(peft_folder)], adapter_weights=[0.5, 1.0])
    policy = policy_of(model, dataclasses.replace(LEARNER, mode=mode))
    policy.weights.bind(moved(policy.weights.export(0)) if mode == "lora" else policy.weights.export(0))
    policy.save(tmp_path / "weights")
    expected = Sampler(policy, SAMPLER).sample(PromptBatch(0, 0, (PROMPT,), ({},)), 1, 5, trajectory=False).images[0]
    text = policy.usage(model, SAMPLER, mode, tmp_path / "weights", PROMPT)
    noise = ImageNoise(5, 0, np.array([0]), np.array([0]), policy.latent_shape)
    picture = run_program(text, tmp_path, monkeypatch, noise)
    assert np.abs(picture.astype(int) - expected).max() <= 1


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


def test_the_jax_twin_has_frozen_adapters_in_its_weights(folder: Path, style: Path, peft_folder: Path) -> None:
    jax, jax_unet = pytest.importorskip("jax"), pytest.importorskip("prdp.diffusion.jax_unet")
    model = ModelConfig(path=str(folder), adapters=[str(style), str(peft_folder)], adapter_weights=[0.5, 1.0])
    policy = policy_of(model, keep=False)
    policy.weights.bind(moved(policy.weights.export(0)))
    fixed, learning = policy.weights.fixed(), policy.weights.parameters
    jax_unet.check_adapters([*fixed, *learning])
    tensors = {name: value.detach().numpy() for name, value in {**fixed, **learning}.items()}
    generator = torch.Generator().manual_seed(0)
    latents, states = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 16, generator=generator)
    unet = jax_unet.UNet(dict(policy.network.config), lora_scale=LEARNER.lora_alpha / LEARNER.lora_rank)
    found = jax.jit(unet.__call__)(tensors, latents.numpy(), np.array([900, 30]), states.numpy())
    np.testing.assert_allclose(np.asarray(found), output(policy.network).numpy(), rtol=0, atol=2e-5)


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


def test_the_reference_is_what_pefts_own_switch_makes_and_no_flag_stays_behind(folder: Path) -> None:
    policy = policy_of(ModelConfig(path=str(folder)))
    policy.weights.bind(moved(policy.weights.export(0)))
    gradients = {name: value.requires_grad for name, value in policy.network.named_parameters()}
    adapted = output(policy.network)
    with pytest.raises(KeyError), policy.reference() as network:
        reference = output(network)
        raise KeyError
    assert torch.equal(output(policy.network), adapted)
    assert {name: value.requires_grad for name, value in policy.network.named_parameters()} == gradients
    policy.network.disable_adapters()
    assert torch.equal(output(policy.network), reference)
    assert not torch.equal(adapted, reference)
