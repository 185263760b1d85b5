"""Kohya's files that adapt text encoders too: every reader, the merge and the writers, against deltas by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from prdp.commands.export import _usage_of_kohya
from prdp.config import LearnerConfig, ModelConfig
from prdp.diffusion import build_policy
from prdp.diffusion.adapter_files import AdaptedLayer
from prdp.diffusion.adapter_usage import loading_lines
from prdp.diffusion.adapters import start_problems
from prdp.evaluation.loading import apply_lora
from prdp.experts.lora_files import diffusers_state, read_expert, read_layers
from prdp.experts.merge import merge_experts
from prdp.experts.methods import MeanDelta
from prdp.experts.writing import write_lora

ATTENTION = [f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
CASES = {
    "queries alone": ATTENTION[:1],
    "attention": ATTENTION,
    "attention and MLP": [*ATTENTION, "mlp.fc1", "mlp.fc2"],
    "queries and MLP": [ATTENTION[0], "mlp.fc1"],
}
FROZEN = LearnerConfig(mode="frozen")
UNET = ["attn1.to_q", "attn2.to_v"]
Deltas = dict[str, torch.Tensor]


def kohya(folder: Path, names: Sequence[str], seed: int, unet: Sequence[str] = UNET) -> tuple[Path, Deltas]:
    """A file in which every layer has a rank and an alpha of its own; layer of diffusers -> alpha / rank * up down."""
    generator, tensors, deltas = torch.Generator().manual_seed(seed), dict[str, torch.Tensor](), Deltas()
    text = {f"text_encoder.text_model.encoder.layers.0.{name}": f"lora_te_text_model_encoder_layers_0_{name}"
            for name in names}  # fmt: skip
    block = "mid_block.attentions.0.transformer_blocks.0"
    network = {f"unet.{block}.{name}": f"lora_unet_{block}_{name}" for name in unet}
    for number, (layer, name) in enumerate({**text, **network}.items()):
        rank, alpha, key = 1 + number % 3, 1.0 + number, name.replace(".", "_")
        down = 0.2 * torch.randn(rank, 16, generator=generator)
        up = 0.2 * torch.randn(16, rank, generator=generator)
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(alpha)}
        deltas[layer] = alpha / rank * up @ down
    file = folder / f"{seed}.safetensors"
    save_file(tensors, file)
    return file, deltas


@pytest.fixture
def built(small_pipeline: Path) -> Callable[..., Any]:
    def policy(*adapters: Path, learner: LearnerConfig = FROZEN) -> Any:
        model = ModelConfig(path=str(small_pipeline), device="cpu", adapters=[str(file) for file in adapters])
        return build_policy(model, learner, seed=0, keep_reference=learner.mode != "frozen")

    return policy


@torch.no_grad()
def output(policy: Any, network: Any = None) -> torch.Tensor:
    """With its own text encoder and network."""
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    conditions = policy.encode(["a small red circle", "two blue squares"])
    found: torch.Tensor = policy.output(latents, torch.tensor([900.0, 30.0]), conditions, 2.0, network)
    return found


@torch.no_grad()
def by_hand(policy: Any, deltas: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Of the weights W + delta."""
    encoder = {name.removeprefix("text_model."): one for name, one in policy.pipeline.text_encoder.named_modules()}
    modules = {f"text_encoder.text_model.{name}": one for name, one in encoder.items()}
    modules |= {f"unet.{name}": one for name, one in policy.network.named_modules()}
    for name, delta in deltas.items():
        modules[name].weight += delta
    return output(policy)


def assert_deltas(layers: Mapping[str, AdaptedLayer], expected: Deltas) -> None:
    assert layers.keys() == expected.keys()
    for name, delta in expected.items():
        torch.testing.assert_close(layers[name].scale * layers[name].up @ layers[name].down, delta, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_every_reader_finds_the_same_deltas(case: str, built: Callable[..., Any], tmp_path: Path) -> None:
    file, deltas = kohya(tmp_path, CASES[case], 1)
    assert_deltas(read_layers("", file), deltas)
    expected = by_hand(built(), deltas)
    assert (expected - output(built())).abs().max() > 1e-2
    torch.testing.assert_close(output(built(file)), expected, rtol=0, atol=1e-5)
    evaluated = built()
    apply_lora(evaluated, file)
    torch.testing.assert_close(output(evaluated), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_what_is_merged_is_written_and_read_alike(case: str, built: Callable[..., Any], tmp_path: Path) -> None:
    """With one that adapts queries alone."""
    (file, deltas), (other, others) = kohya(tmp_path, CASES[case], 1), kohya(tmp_path, CASES["queries alone"], 2)
    mean = {name: 0.75 * delta + 0.25 * others.get(name, torch.zeros(())) for name, delta in deltas.items()}
    experts = [read_expert("models", str(one)) for one in (file, other)]
    merged = merge_experts(experts, [0.75, 0.25], 1.0, MeanDelta()).layers
    layers = {name: one.layer for name, one in merged.items()}
    assert_deltas(layers, mean)
    expected = by_hand(built(), mean)
    for form in ("diffusers", "kohya", "peft"):
        (tmp_path / form).mkdir()
        written = write_lora(tmp_path / form, layers, form, {})
        assert_deltas(read_layers("", written), mean)
        policy = built()
        apply_lora(policy, written)
        torch.testing.assert_close(output(policy), expected, rtol=0, atol=1e-5, msg=form)


def test_text_encoders_alone(built: Callable[..., Any], tmp_path: Path) -> None:
    file, deltas = kohya(tmp_path, CASES["queries and MLP"], 1, unet=())
    expected = by_hand(built(), deltas)
    torch.testing.assert_close(output(built(file)), expected, rtol=0, atol=1e-5)
    policy = built()
    apply_lora(policy, file)
    torch.testing.assert_close(output(policy), expected, rtol=0, atol=1e-5)
    learner = LearnerConfig(lora_targets=["to_q"], text_encoders=True)
    beside = built(file, learner=learner)
    torch.testing.assert_close(output(beside), expected, rtol=0, atol=1e-5)
    with beside.reference() as network:
        torch.testing.assert_close(output(beside, network), expected, rtol=0, atol=1e-5)
    [told] = start_problems(policy.adapter("learner.init_adapter", str(file)), policy.network, learner)
    assert told == f"learner.init_adapter: {file}: adapts text_encoder alone: take it frozen by model.adapters"


def test_programs_load_such_files_as_they_say(built: Callable[..., Any], small_pipeline: Path, tmp_path: Path) -> None:
    """diffusers alone finds no scheme of names in queries alone, and takes one alpha for several layers."""
    file, deltas = kohya(tmp_path, CASES["queries alone"], 1)
    model = ModelConfig(path=str(small_pipeline), adapters=[str(file)])
    assert any("diffusers_state" in line for line in loading_lines(model, "lora", "unet"))
    pipeline = StableDiffusionPipeline.from_pretrained(small_pipeline, safety_checker=None)
    with pytest.raises(ValueError, match="Could not automatically infer state dict type"):
        pipeline.load_lora_weights(tmp_path, weight_name=file.name)
    pipeline = StableDiffusionPipeline.from_pretrained(small_pipeline, safety_checker=None)
    pipeline.load_lora_weights(diffusers_state(str(file)))
    policy = built()
    policy.pipeline.text_encoder = pipeline.text_encoder
    policy.weights.network = policy.network = pipeline.unet
    torch.testing.assert_close(output(policy), by_hand(built(), deltas), rtol=0, atol=1e-5)


def test_an_export_says_that_diffusers_does_not_read_it() -> None:
    text = {f"text_encoder.text_model.encoder.layers.0.{name}": 0 for name in CASES["queries and MLP"]}
    assert _usage_of_kohya("program", text, "stable_diffusion").startswith("* ComfyUI and kohya's programs load")
    for names in (ATTENTION, ["mlp.fc1"], []):
        text = {f"text_encoder.text_model.encoder.layers.0.{name}": 0 for name in names} | {"unet.conv_in": 0}
        assert _usage_of_kohya("program", text, "stable_diffusion") == "program"
    assert "names of Stable Diffusion 3" in _usage_of_kohya("program", {}, "stable_diffusion_3")
