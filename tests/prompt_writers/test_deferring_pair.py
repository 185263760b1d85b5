"""A pair of language models as a writer: its answers, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from prdp.prompt_writers import build_writer, check_writer
from prdp.prompt_writers.base import Request
from prdp.prompt_writers.scenes import Scenes
from prdp.support.errors import UserError

TARGET = "prdp.prompt_writers.deferring_pair."


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random pair of the embedded task's words."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from prdp.language.building import identity
    from prdp.language.folder import write_manifest, write_variant
    from prdp.language.models import DeferringModel, folder_digest
    from prdp.language.settings import AssistantConfig
    from prdp.language.shapes_task import WORDS, build_tokenizer
    from prdp.language.tokenizers import tokenizer_digest

    place, tokenizer = tmp_path_factory.mktemp("pair"), build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=96, initializer_range=0.5, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    for name in ("base", "assistant"):
        LlamaForCausalLM(config).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    network = LlamaForCausalLM.from_pretrained(place / "base")
    write_variant(place / "pair" / "trained", DeferringModel(network, len(WORDS)), "full")
    tokenizer.save_pretrained(place / "pair" / "tokenizer")
    given = AssistantConfig(path=str(place / "assistant"))
    assistant = {**identity(given), "digest": folder_digest(given.path)}
    write_manifest(place / "pair", str(place / "base"), "full", assistant, tokenizer_digest(tokenizer), {})
    return place / "pair"


def section(pair: Path, name: str = "DeferringPairWriter", **more: Any) -> dict[str, Any]:
    return {"_target_": f"{TARGET}{name}", "pair": str(pair), "eta": 0.5, "max_tokens": 12, "device": "cpu", **more}


def test_a_seed_decides_and_answers_go_on_behind_the_number(pair: Path) -> None:
    requests = [Request(number, "a red\n4.", 4, 20, seed) for number, seed in enumerate((3, 4))]
    check_writer("writer", section(pair), has_scenes=False)
    writer: Any = build_writer(section(pair))
    first, again = dict(writer.answers(requests)), dict(writer.answers(requests))
    assert first == again
    assert all(one.text.startswith("4. ") for one in first.values())
    assert dict(writer.answers([dataclasses.replace(requests[0], seed=9)])) != {0: first[0]}
    assert 0 < writer.deferred < writer.tokens
    assert writer.name == "deferring pair pair"


def test_records_of_scenes_become_a_list_without_marks(pair: Path) -> None:
    scenes = Scenes(objects=(1, 2))
    request = Request(0, "", 4, 5, 3, scenes)
    check_writer("writer", section(pair, "ScenePairWriter"), has_scenes=True)
    writer = build_writer(section(pair, "ScenePairWriter"))
    [(_, answer)] = writer.answers([request])
    assert [line.partition(".")[0] for line in answer.text.splitlines()] == ["4", "5", "6", "7", "8"]
    assert ":" not in answer.text
    with pytest.raises(UserError, match="writes for skills that have scenes"):
        check_writer("writer", section(pair, "ScenePairWriter"), has_scenes=False)
    with pytest.raises(ValueError, match=r"set skill\.scenes\.objects=\[1,2\]"):
        list(writer.answers([dataclasses.replace(request, scenes=Scenes())]))


def test_what_it_cannot_use_is_refused(pair: Path, tmp_path: Path) -> None:
    for changes, told in (
        ({"pair": str(tmp_path)}, "must be a folder with collm.json"),
        ({"eta": 1.5}, "eta=1.5: must be above 0 and below 1, or null"),
        ({"temperature": -1}, "temperature=-1: must be at least 0"),
    ):
        with pytest.raises(UserError, match=told):
            check_writer("writer", section(pair) | changes, has_scenes=False)
    with pytest.raises(UserError, match="has to be calibrated first"):
        build_writer(section(pair) | {"eta": None})
