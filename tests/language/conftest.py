"""Small random models of the embedded task's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def random_model(seed: int, width: int = 16, layers: int = 2, spread: float = 0.5) -> Any:
    """A Llama with the task's words, whose likeliest tokens differ from place to place."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from prdp.language.shapes_task import WORDS

    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=width, intermediate_size=width, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, initializer_range=spread,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    from prdp.language.shapes_task import build_tokenizer

    return build_tokenizer()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> dict[str, Path]:
    """Two random models on disk, with the tokenizer of both."""
    place = tmp_path_factory.mktemp("models")
    for name, seed, width in (("base", 0, 16), ("assistant", 1, 24)):
        random_model(seed, width).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    return {name: place / name for name in ("base", "assistant")}


@pytest.fixture(scope="session")
def models(tokenizer: Any) -> dict[str, Any]:
    """A base with a row that decides this way and that, and an assistant."""
    import torch

    from prdp.language.models import DeferringModel, LanguageModel

    generator = torch.Generator().manual_seed(0)
    row = torch.randn(16, generator=generator), torch.tensor(0.1)
    return {
        "base": DeferringModel(random_model(0), len(tokenizer), row).eval(),
        "assistant": LanguageModel(random_model(1, 24), len(tokenizer)).eval(),
    }


@pytest.fixture(scope="session")
def pair(models: dict[str, Any], tokenizer: Any) -> Any:
    from prdp.language.assistants import LocalAssistant
    from prdp.language.decoding import Pair

    assistant = LocalAssistant(models["assistant"], "large", "digest", 64)
    return Pair(models["base"], assistant, tokenizer, frozenset({2}), 64)


@pytest.fixture(scope="session")
def prompts() -> list[tuple[int, ...]]:
    """Of different lengths."""
    return [(1, 9, 14, 5), (1, 20, 8, 30, 11, 25, 5), (1, 5), (1, 12, 13, 14, 15, 16, 5)]
