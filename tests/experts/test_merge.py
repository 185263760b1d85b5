"""Whole experts merged, against diffusers' `set_adapters` and peft's `add_weighted_adapter`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict

from prdp.diffusion.adapter_files import AdaptedLayer
from prdp.diffusion.adapter_tensors import LORA_FILE
from prdp.diffusion.model_folder import EMBEDDED_FOLDERS
from prdp.experts.lora_files import Expert, read_expert, read_layers
from prdp.experts.merge import absent_layers, check_same_base, merge_experts, normalised
from prdp.experts.merging import delta
from prdp.experts.methods import Dare, MeanDelta, Method, Svd, Ties
from prdp.experts.writing import write_lora
from prdp.support.errors import StartError

WEIGHTS = [0.5, 0.3, 0.2]
METHODS = [MeanDelta(), Svd(4), Ties(0.5, None), Dare(0.5, None, 0), Dare(0.5, 8, 1)]
Output = Callable[[Any], torch.Tensor]


def read(files: Sequence[Path]) -> list[Expert]:
    return [read_expert("models", str(file), f"expert {number}") for number, file in enumerate(files)]


def merged(experts: Sequence[Expert], weights: Sequence[float], method: Method, scale: float = 1.0) -> dict[str, Any]:
    found = merge_experts(experts, weights, scale, method)
    return {name: one.layer for name, one in found.layers.items()}


def loaded(network: Any, file: Path, name: str) -> None:
    state, *alphas, metadata = StableDiffusionPipeline.lora_state_dict(
        file.parent, weight_name=file.name, return_lora_metadata=True
    )
    StableDiffusionPipeline.load_lora_into_unet(state, *alphas, network, adapter_name=name, metadata=metadata)


def set_adapters(network: Any, files: Sequence[Path], weights: Sequence[float]) -> Any:
    names = [f"e{number}" for number in range(len(files))]
    for name, file in zip(names, files, strict=True):
        loaded(network, file, name)
    network.set_adapters(names, list(weights))
    return network


def assert_same_deltas(found: dict[str, Any], expected: dict[str, Any], tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(delta(found[name]), delta(expected[name]), rtol=0, atol=tolerance)


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_one_file_is_what_diffusers_computes_of_several(
    unet: Callable[[], Any], experts: list[Path], output: Output, tmp_path: Path, form: str
) -> None:
    """Of different ranks, alphas and layers, convolutions among them; weights and scale."""
    expected = output(set_adapters(unet(), experts, [1.5 * one for one in WEIGHTS]))
    file = write_lora(tmp_path, merged(read(experts), WEIGHTS, MeanDelta(), 1.5), form, {})
    network = unet()
    loaded(network, file, "merged")
    torch.testing.assert_close(output(network), expected, rtol=0, atol=1e-6)
    assert (expected - output(unet())).abs().max() > 1e-2


def test_mean_delta_on_the_embedded_network_is_pefts_cat_and_diffusers(output: Output, tmp_path: Path) -> None:
    folder = EMBEDDED_FOLDERS["shapes"] / "unet"
    whole = UNet2DConditionModel.from_pretrained(folder)
    plain = copy.deepcopy(whole)
    network = get_peft_model(whole, _config(), "e0")
    for name in ("e1", "e2"):
        network.add_adapter(name, _config())
    torch.manual_seed(0)
    for name, value in network.named_parameters():
        if ".lora_" in name:
            value.data.normal_(std=0.05)
    files = []
    for name in ("e0", "e1", "e2"):
        named = get_peft_model_state_dict(network, adapter_name=name)
        state = {key.removeprefix("base_model.model."): value for key, value in named.items()}
        StableDiffusionPipeline.save_lora_weights(
            tmp_path / name, unet_lora_layers=state, unet_lora_adapter_metadata=_config().to_dict()
        )
        files.append(tmp_path / name / LORA_FILE)
    network.add_weighted_adapter(["e0", "e1", "e2"], WEIGHTS, "cat", combination_type="cat")
    network.set_adapter("cat")
    expected = output(network.base_model.model)
    file = write_lora(tmp_path, merged(read(files), WEIGHTS, MeanDelta()), "diffusers", {})
    loaded(plain, file, "merged")
    torch.testing.assert_close(output(plain), expected, rtol=0, atol=1e-6)
    plain.delete_adapters("merged")
    torch.testing.assert_close(output(set_adapters(plain, files, WEIGHTS)), expected, rtol=0, atol=1e-6)


def _config() -> LoraConfig:
    return LoraConfig(r=8, lora_alpha=12, target_modules=["to_q", "to_k", "to_v", "to_out.0"])


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_experts_does_not_matter(experts: list[Path], method: Method) -> None:
    found = merged(read(experts), WEIGHTS, method)
    turned = merged(read([experts[2], experts[0], experts[1]]), [WEIGHTS[2], WEIGHTS[0], WEIGHTS[1]], method)
    assert_same_deltas(turned, found, 1e-5)


@pytest.mark.parametrize("method", [MeanDelta(), Svd(99), Ties(1.0, None), Dare(1.0, None, 0)])
def test_one_expert_is_itself(experts: list[Path], method: Method) -> None:
    [one] = read(experts[2:])
    assert_same_deltas(merged([one], [1.0], method), dict(one.layers), 2e-6)
    assert_same_deltas(merged([one] * 3, WEIGHTS, method), dict(one.layers), 2e-6)


def test_what_is_drawn_follows_the_seed_the_layer_and_the_file(experts: list[Path]) -> None:
    given = read(experts[:1])
    first = merged(given, [1.0], Dare(0.5, None, 0))
    assert_same_deltas(merged(given, [1.0], Dare(0.5, None, 0)), first, 0.0)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    other = merged(given, [1.0], Dare(0.5, None, 1))
    assert not torch.allclose(delta(other[name]), delta(first[name]), atol=1e-3)
    zeros = [delta(first[layer]).abs() < 1e-6 for layer in (name, name.replace("to_q", "to_k"))]
    assert not torch.equal(*zeros)


def test_a_layer_that_one_lacks_counts_as_zero_and_is_told(experts: list[Path]) -> None:
    given = read(experts)
    found = merged(given, WEIGHTS, MeanDelta())
    only = next(name for name in found if name.endswith("ff.net.2"))
    torch.testing.assert_close(delta(found[only]), 0.2 * delta(given[2].layers[only]))
    lacking = absent_layers(given)
    assert set(lacking) == {("expert 0",), ("expert 2",), ("expert 0", "expert 1")}
    assert only in lacking["expert 0", "expert 1"]
    assert all(name.endswith("conv1") for name in lacking[("expert 0",)])


def test_the_error_of_a_rank_is_that_of_all_deltas_together(experts: list[Path]) -> None:
    given, lines = read(experts), list[str]()
    exact = merge_experts(given, WEIGHTS, 1.0, MeanDelta())
    found = merge_experts(given, WEIGHTS, 1.0, Svd(4), lines.append)
    pairs = [(delta(found.layers[name].layer), delta(one.layer)) for name, one in exact.layers.items()]
    lost = sum(float((a - b).square().sum()) for a, b in pairs)
    assert found.error == pytest.approx((lost / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5, rel=1e-4)
    assert len(lines) == len(found.layers) and "rank 4, relative error" in lines[0]
    assert exact.error == 0 and found.record()["relative_error"] == found.error
    assert {one.layer.rank for one in found.layers.values()} <= {3, 4}


def test_experts_of_other_bases_are_refused(experts: list[Path], tmp_path: Path) -> None:
    layers = dict(read_layers("", experts[0]))
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    wide, high = layers[name].down.shape[1], layers[name].up.shape[0]

    def told(changed: dict[str, AdaptedLayer], times: int = 1) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        file = write_lora(folder, changed, "diffusers", {})
        with pytest.raises(StartError) as caught:
            check_same_base(read([experts[0], *[file] * times]))
        return str(caught.value).replace(str(file), "OTHER").replace(str(experts[0]), "FIRST")

    other = AdaptedLayer(torch.ones(1, wide + 2), torch.ones(high, 1), 1.0)
    assert told({name: other}) == (
        f"models: OTHER: layer {name} takes [{wide + 2}] and gives {high}; in FIRST it takes [{wide}] and gives "
        f"{high}: they are of different bases"
    )
    assert told({name: other}, times=2).count("they are of different bases") == 2, "all of them"
    flow = {"transformer.x.to_q": AdaptedLayer(torch.ones(1, 2), torch.ones(2, 1), 1.0)}
    assert told(flow) == "models: FIRST is of a unet and OTHER is of a transformer: they are of different bases"
    check_same_base(read(experts))
    assert normalised([], ["a", "b"]) == [0.5, 0.5]
