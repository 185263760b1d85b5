"""Other layouts than Llama's: heads that share the embeddings, positions that are learned, padded heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prdp.language.assistants import LocalAssistant
from prdp.language.choosing import SCORES, Above
from prdp.language.decoding import Decoding, Pair, decode
from prdp.language.models import DeferringModel, LanguageModel, load_network, load_tokenizer
from prdp.language.shapes_task import WORDS
from prdp.support.errors import StartError


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=len(WORDS) + 5, n_positions=64, n_embd=16, n_layer=1, n_head=2, initializer_range=0.5,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def qwen() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(4)
    config = Qwen2Config(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.5, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


@pytest.mark.parametrize("network", [gpt2, qwen], ids=["gpt2", "qwen2"])
def test_other_layouts_write_as_they_do_alone(network: Any, models: dict[str, Any], tokenizer: Any) -> None:
    base = DeferringModel(network(), len(WORDS))
    assistant = LocalAssistant(models["assistant"], "large", "", 64)
    pair = Pair(base, assistant, tokenizer, frozenset({2}))
    prompts = [(1, 9, 14, 5), (1, 20, 8, 30, 11, 25, 5)]
    how = Decoding(max_new_tokens=6, batch_size=2)
    alone = list(decode(pair, prompts, lambda _: Above(SCORES["deferral"], 2.0), how))
    for prompt, answer in zip(prompts, alone, strict=True):
        ids = list(prompt)
        for token in answer.tokens:
            with torch.no_grad():
                ids.append(int(base.network(input_ids=torch.tensor([ids])).logits[0, -1, : len(WORDS)].argmax()))
            assert ids[-1] == token, "what a head is padded with is no token"
    ids = torch.tensor([prompts[1]])
    with torch.no_grad():
        hidden = base.network(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        output = base(ids, torch.ones_like(ids))
        torch.testing.assert_close(output.deferral, base.row(hidden)[..., 0])
    assert output.logits.shape == (1, len(prompts[1]), len(WORDS))


def test_the_row_starts_as_the_mean_of_the_head_s_rows_and_must_fit() -> None:
    network = qwen()
    model = DeferringModel(network, len(WORDS))
    torch.testing.assert_close(model.row.weight[0], network.lm_head.weight.mean(0))
    with pytest.raises(ValueError, match="the deferral row has 3 numbers, the base's head reads 16"):
        DeferringModel(network, len(WORDS), (torch.zeros(3), torch.zeros(())))
    with pytest.raises(ValueError, match=rf"its head has {len(WORDS)} rows, the tokenizer 99 tokens"):
        LanguageModel(network, 99)


def test_folders_that_hold_no_model_are_told(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"base=.*/none: there is no such folder"):
        load_network("base", str(tmp_path / "none"), "cpu", "float32")
    with pytest.raises(StartError, match="holds no causal language model"):
        load_network("base", str(tmp_path), "cpu", "float32")
    with pytest.raises(StartError, match="holds no tokenizer"):
        load_tokenizer("base", str(tmp_path))
