"""A tiny random model of transformers as a writer: what it is asked, and that a seed decides what it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prdp.prompt_writers import build_writer, check_writer
from prdp.prompt_writers.base import Request
from prdp.support.errors import UserError

TARGET = "prdp.prompt_writers.local_model.LocalModelWriter"
WORDS = ("a", "fox", "bee", "red", "two", "4.", "5.", "write", "user:")
TEMPLATE = "{% for m in messages %}user: {{ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of a few hundred weights with a tokenizer of nine words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    names = ("<end>", "<unknown>", *WORDS)
    words = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unknown>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="<unknown>")
    config = LlamaConfig(
        vocab_size=len(names), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=64, eos_token_id=0, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("language") / "tiny"
    LlamaForCausalLM(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def requests(*seeds: int) -> list[Request]:
    texts = ("write a fox\n4.", "write two\n4.")
    return [Request(number, texts[number % 2], 4, 20, seed) for number, seed in enumerate(seeds)]


def answers(folder: Path, *seeds: int, **arguments: Any) -> list[Any]:
    section = {"_target_": TARGET, "path": str(folder), "max_tokens": 8, "device": "cpu", **arguments}
    check_writer("writer", section, has_scenes=False)
    return [answer for _, answer in build_writer(section).answers(requests(*seeds))]


def test_a_seed_decides_and_answers_go_on_behind_the_number(folder: Path) -> None:
    import torch

    before = torch.random.get_rng_state()
    first, again, other = answers(folder, 1, 2), answers(folder, 1, 2), answers(folder, 3, 4)
    assert torch.equal(before, torch.random.get_rng_state()), "the generator of others is left alone"
    assert first == again != other
    assert all(one.text.startswith(("4.", "5.")) for one in first)
    assert set(" ".join(one.text for one in first).split()) <= {*WORDS}
    many = answers(folder, *range(20))
    assert {one.cut for one in many} == {True, False}
    assert all(len(one.text.split()) <= 8 for one in many if not one.cut), "the end is a token, too"


def test_greedy_answers_do_not_depend_on_the_batch(folder: Path) -> None:
    """Shorter requests are padded on the left, and masked there."""
    together = answers(folder, 1, 2, temperature=0)
    section = {"_target_": TARGET, "path": str(folder), "max_tokens": 8, "temperature": 0, "device": "cpu"}
    writer = build_writer(section)
    assert [dict(writer.answers([request]))[0] for request in requests(1, 2)] == together


def test_requests_go_through_a_chat_template(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prdp.prompt_writers.local_model import LocalModelWriter

    with pytest.raises(UserError, match=r"writer: chat=true: the tokenizer in .* has no chat template"):
        answers(folder, 1, chat=True)
    writer = LocalModelWriter(str(folder), max_tokens=4, device="cpu")
    assert writer.name == "transformers tiny"
    writer._tokenizer.chat_template, writer._chat = TEMPLATE, True
    assert writer._prepared("write a fox") == "user: write a fox"
    [(_, answer)] = writer.answers(requests(1))
    assert not answer.text.startswith("4. ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "/nowhere"}, "path=/nowhere: must be a folder with config.json"),
        ({"top_p": 2.0}, "top_p=2.0: must be above 0"),
        ({"dtype": "int8"}, "dtype=int8: must be one of float32"),
        ({"max_tokens": 61}, "max_tokens=61: with requests of 4 tokens that is more than the 64"),
        ({"trust_remote_code": True}, "LocalModelWriter takes no argument 'trust_remote_code'"),
    ],
)
def test_what_cannot_write(folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        answers(folder, 1, **arguments)


def test_a_folder_without_such_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds no causal language model with its tokenizer"):
        answers(tmp_path, 1)
