"""The embedded task: the record of a scene in, its prompt out, with a mark behind every phrase; and two tiny models.

Neither model can do it alone. The base writes the marks, but is too small to find an object's attributes in the record.
The assistant finds them, but never writes a mark: its texts have none, and where a text before it has some, it has
learned to read on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from prdp.language.records import Record
from prdp.worlds.shapes.grammar import VOCABULARY, caption
from prdp.worlds.shapes.scene import SHAPES, Scene
from prdp.worlds.shapes.split import distinct_scenes

MARK, SEPARATOR, ASKS = ":", ";", "=>"
PAD, START, END, UNKNOWN = SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
WORDS = (*SPECIAL, SEPARATOR, ASKS, MARK, *VOCABULARY)
MAX_TOKENS = 64
SIZES = {"base": (1, 16, 2), "assistant": (3, 96, 4)}
"""Layers, width and heads."""
MOST_OBJECTS = 2
_INITIAL = 0.08
"""Spread of the weights at the start; the usual .02 is for wide models, and these would learn slowly with it."""
_IGNORED = -100
_WARM_UP = 20
_DECAY = 0.3
"""Share of the last steps, in which the learning rate falls to 0."""


def build_tokenizer() -> Any:
    """A word a token; both models have it."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token=UNKNOWN))
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = TemplateProcessing(single=f"{START} $A", special_tokens=[(START, WORDS.index(START))])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=MAX_TOKENS,
    )


def build_model(name: str, seed: int) -> Any:
    """An untrained Llama, 'base' or 'assistant'."""
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, width, heads = SIZES[name]
    pad, start, end = map(WORDS.index, (PAD, START, END))
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=_INITIAL,
        pad_token_id=pad,
        bos_token_id=start,
        eos_token_id=end,
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def record_of(scene: Scene, rng: np.random.Generator) -> str:
    """What stands before the prompt: the attributes of each object in an order drawn anew, the relation, the
    background."""
    parts = [" ".join(rng.permutation([one.size, one.fill, one.color, one.shape])) for one in scene.objects]
    if scene.relation is not None:
        parts.append(scene.relation)
    return f" {SEPARATOR} ".join([*parts, scene.background]) + f" {ASKS}"


def marked(text: str) -> str:
    """A prompt with a mark behind every phrase."""
    ends = (*SHAPES, "background")
    return " ".join(f"{word} {MARK}" if word in ends else word for word in text.split())


def without_marks(text: str) -> str:
    """The prompt in a text with marks."""
    return " ".join(word for word in text.split() if word != MARK)


def records(split: str, count: int, seed: int) -> list[Record]:
    """Records of different scenes of one split, in random order, with the prompts to be written."""
    rng = np.random.default_rng((seed, 7))
    # About a fifth of the scenes have more objects.
    scenes = [one for one in distinct_scenes(split, 2 * count, seed) if len(one.objects) <= MOST_OBJECTS]
    return [Record(record_of(scene, rng), marked(caption(scene))) for scene in scenes[:count]]


def train_language_model(
    model: Any,
    data: Sequence[Record],
    *,
    writes_marks: bool,
    steps: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
) -> Iterator[float]:
    """Learn to write the prompts of records: AdamW, a trapezoid of learning rates, the mean cross-entropy of a step.

    Args:
        writes_marks: whether the texts have marks. Without, half of them have some all the same, which are read and
            not learned, so that the model knows how to go on behind one.

    Yields:
        The loss of each step.
    """
    number = {word: place for place, word in enumerate(WORDS)}
    tokens = [
        ([number[START], *map(number.__getitem__, one.prompt.split())], [number[word] for word in one.answer.split()])
        for one in data
        if one.answer is not None
    ]
    mark, end = number[MARK], number[END]
    rng = np.random.default_rng((seed, 11))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    model.train()
    for step in range(steps):
        rows = []
        for place in rng.integers(len(tokens), size=batch_size):
            prompt, answer = tokens[place]
            if not writes_marks and rng.random() < 0.5:
                answer = [token for token in answer if token != mark]
            learned = [*answer, end]
            if not writes_marks:
                learned = [_IGNORED if token == mark else token for token in learned]
            rows.append(([*prompt, *answer, end], [_IGNORED] * len(prompt) + learned))
        longest = max(len(read) for read, _ in rows)
        ids = torch.full((batch_size, longest), number[PAD])
        labels = torch.full((batch_size, longest), _IGNORED)
        for row, (read, learned) in enumerate(rows):
            ids[row, : len(read)], labels[row, : len(read)] = torch.tensor(read), torch.tensor(learned)
        for group in optimizer.param_groups:
            falling = (steps - step) / (_DECAY * steps)
            group["lr"] = learning_rate * min(1.0, (step + 1) / _WARM_UP, falling)
        logits = model(input_ids=ids[:, :-1]).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield float(loss.detach())
    model.eval()
