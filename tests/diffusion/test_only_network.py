"""A policy for a learner: the network alone, with the exports of a whole one; and what becomes of prompts elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from narrow_flow import narrow_pipeline as narrow_flow
from narrow_xl import narrow_xl
from safetensors.torch import load_file

from prdp.config import LearnerConfig, ModelConfig
from prdp.diffusion import build_policy
from prdp.diffusion.prompt_encoder import PromptEncoder, on_device
from prdp.types import Weights

FULL = LearnerConfig(mode="full")


@pytest.fixture(params=["stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> ModelConfig:
    if request.param == "stable_diffusion":
        return ModelConfig(path=str(request.getfixturevalue("pipeline_folder")))
    if request.param == "stable_diffusion_xl":
        narrow_xl().save_pretrained(tmp_path / "xl")
        return ModelConfig(family=request.param, path=str(tmp_path / "xl"))
    narrow_flow().save_pretrained(tmp_path / "flow")
    return ModelConfig(family=request.param, path=str(tmp_path / "flow"), max_sequence_length=2)


def files(folder: Path) -> dict[str, Any]:
    """What is in them; a tokenizer's file also tells what it was last used for."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix == ".safetensors":
            found |= {
                f"{file.relative_to(folder)}/{key}": value.numpy().tobytes() for key, value in load_file(file).items()
            }
        elif file.is_file():
            found[str(file.relative_to(folder))] = None if file.name == "tokenizer.json" else file.read_bytes()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("learner", [FULL, LearnerConfig(lora_rank=2)])
def test_a_learner_holds_the_network_alone_and_exports_the_whole(
    model: ModelConfig, learner: LearnerConfig, tmp_path: Path
) -> None:
    whole: Any = build_policy(model, learner, seed=0, keep_reference=False)
    bare: Any = build_policy(model, learner, seed=0, keep_reference=False, only_network=True)
    parts = {name for name, part in bare.pipeline.components.items() if isinstance(part, torch.nn.Module)}
    assert parts == {bare.NETWORK} < {name for name, part in whole.pipeline.components.items() if part is not None}
    for ask in (lambda: bare.encode(["a star"]), lambda: bare.decode(torch.zeros(1, *bare.latent_shape))):
        with pytest.raises(RuntimeError, match=r"loaded with only_network=True, and has no (text_encoder|vae)"):
            ask()
    assert (bare.latent_shape, bare.picture_size) == (whole.latent_shape, whole.picture_size)
    rng = np.random.default_rng(0)
    start = whole.weights.export(0).tensors
    tensors = {name: value + 0.01 * rng.normal(size=value.shape).astype(np.float32) for name, value in start.items()}
    conditions = whole.encode(["a star"])
    latents = torch.zeros(1, *whole.latent_shape)
    for policy in (whole, bare):
        policy.weights.bind(Weights.of(1, tensors))
    with torch.no_grad():
        outputs = [one.output(latents, torch.tensor([0.5]), conditions, 2.0) for one in (whole, bare)]
    torch.testing.assert_close(*outputs, rtol=0, atol=0)
    for policy, name in ((whole, "whole"), (bare, "bare")):
        policy.save(tmp_path / name)
    assert files(tmp_path / "bare") == files(tmp_path / "whole")


def test_a_known_prompt_is_not_encoded_again(model: ModelConfig) -> None:
    import dataclasses

    plain: Any = build_policy(model, FULL, seed=0, keep_reference=False)
    kept: Any = build_policy(dataclasses.replace(model, cached_prompts=2), FULL, seed=0, keep_reference=False)
    asked: list[list[str]] = []
    encode = kept._encoder._encode

    def counting(prompts: Sequence[str]) -> Any:
        asked.append(list(prompts))
        return encode(prompts)

    kept._encoder._encode = counting
    first, again = kept.encode(["a", "b", "a"]), kept.encode(["b", "a"])
    assert asked == [[""], ["a"], ["b"]]
    expected = plain.encode(["a", "b", "a"])
    for name, value in expected.fields.items():
        torch.testing.assert_close(first.fields[name], value, rtol=0, atol=1e-5)
        assert torch.equal(again.fields[name], first.fields[name][1:])
        assert torch.equal(first.empty[name], expected.empty[name])  # type: ignore[index]
    kept.encode(["c"])
    kept.encode(["a", "b"])
    assert asked[3:] == [["c"], ["b"]], "the one that was asked for least recently is gone"


def test_the_cache_keeps_its_size() -> None:
    encoder = PromptEncoder(lambda prompts: {"n": torch.tensor([[float(len(one))] for one in prompts])}, 3)
    for _ in range(2):
        fields = encoder.encode([letter * (index + 1) for index, letter in enumerate("abcdefg")]).fields
        assert fields["n"][:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7]
        assert len(encoder._kept) == 3


def test_offloaded_encoders_are_on_the_device_only_while_they_encode(model: ModelConfig) -> None:
    import dataclasses

    plain: Any = build_policy(model, FULL, seed=0, keep_reference=False)
    offloaded: Any = build_policy(dataclasses.replace(model, offload_encoders=True), FULL, seed=0, keep_reference=False)
    expected, found = plain.encode(["a star"]), offloaded.encode(["a star"])
    for name, value in expected.fields.items():
        assert torch.equal(found.fields[name], value)
    moves: list[torch.device | str] = []

    class Encoder(torch.nn.Module):
        def to(self, device: Any) -> Any:
            moves.append(device)
            return self

    with pytest.raises(ZeroDivisionError), on_device([Encoder()], torch.device("cuda")):
        assert moves == [torch.device("cuda")]
        raise ZeroDivisionError
    assert moves[1:] == ["cpu"]
