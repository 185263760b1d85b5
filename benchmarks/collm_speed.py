"""Tokens per second of a pair, beside its models alone, naive calls without caches, and speculative decoding.

    python benchmarks/collm_speed.py [--base FOLDER --assistant FOLDER] [--tokens 64] [--rates 0.1,0.25,0.5] [--batch 1]

Without folders both models are Llama layouts with random weights, of some millions and tens of millions: how well they
write does not matter for speed, and tokens are deferred by lot at each rate. A model alone is read by itself, with its
cache. All ways take turns, several times over, so
that other work on the machine hits them alike; what is shown are medians, and ratios to the assistant alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from prdp.language.assistants import LocalAssistant
from prdp.language.choosing import AtRandom, Constant, Likeliest, Rule
from prdp.language.decoding import Pair, steps
from prdp.language.models import LanguageModel, load_network

VOCABULARY = 2048
PROMPT = 64


def random_model(layers: int, width: int, seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
            num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=1024, eos_token_id=None,
            bos_token_id=None, pad_token_id=0,
        )
    ).eval()  # fmt: skip


class TokenizerOfNone:
    """Texts are not looked at."""

    eos_token_id = -1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base")
    parser.add_argument("--assistant")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rates", default="0.1,0.25,0.5", help="separated by commas")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.base and options.assistant:
        small, large = (load_network("model", path, "auto", "float32") for path in (options.base, options.assistant))
    else:
        small, large = random_model(2, 256, 0), random_model(8, 512, 1)
    vocabulary = min(one.get_output_embeddings().weight.shape[0] for one in (small, large))
    ids = torch.randint(3, vocabulary, (options.batch, PROMPT), generator=torch.Generator().manual_seed(0))
    ids = ids.to(small.device)

    def pair(cached: bool, alone: Any = None) -> Pair:
        """Both models; or one whose partner is never read."""
        base, assistant = LanguageModel(small, vocabulary), LanguageModel(large, vocabulary)
        base = base if alone is None else LanguageModel(alone, vocabulary)
        return Pair(base, LocalAssistant(assistant, "large", "", use_cache=cached), TokenizerOfNone(), frozenset({0}))

    def written(cached: bool, rule: Callable[[], Rule], alone: Any = None) -> Callable[[], None]:
        def run() -> None:
            made = steps(
                pair(cached, alone), ids, torch.ones_like(ids), rule(), Likeliest(),
                lambda so_far: torch.zeros(len(so_far), dtype=torch.bool, device=so_far.device), options.tokens,
                use_cache=cached,
            )  # fmt: skip
            assert sum(1 for _ in made) == options.tokens

        return run

    def by_lot(rate: float) -> Callable[[], Rule]:
        return lambda: AtRandom(rate, [(0, row) for row in range(options.batch)])

    ways = {
        "assistant alone": written(True, lambda: Constant(False), large),
        "base alone": written(True, lambda: Constant(False), small),
    }
    for rate in map(float, options.rates.split(",")):
        ways[f"pair, {rate:.0%} deferred"] = written(True, by_lot(rate))
        ways[f"the same without caches, {rate:.0%} deferred"] = written(False, by_lot(rate))
    if options.batch == 1:
        ways["speculative decoding, transformers'"] = lambda: speculated(small, large, ids, options.tokens)
    report(timed(ways, options.rounds), options.tokens * options.batch)


def speculated(small: Any, large: Any, ids: torch.Tensor, tokens: int) -> None:
    """The library's own, whose text is the large model's; with random weights drafts are hardly ever right."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    large.generate(
        ids, attention_mask=torch.ones_like(ids), assistant_model=small, max_new_tokens=tokens, do_sample=False
    )


def timed(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, Sequence[float]]:
    """Seconds of each way, turn by turn; a turn before counts for nothing."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, run in ways.items():
            begun = time.process_time() if not torch.cuda.is_available() else time.perf_counter()
            run()
            now = time.process_time() if not torch.cuda.is_available() else time.perf_counter()
            if turn:
                found[name].append(now - begun)
    return found


def report(found: dict[str, Sequence[float]], tokens: int) -> None:
    alone = found["assistant alone"]
    unit = "" if torch.cuda.is_available() else " of processor time"
    print(f"| | tokens a second{unit} | beside the assistant alone |")
    print("|---|---|---|")
    for name, seconds in found.items():
        # Ratios within a turn, which other work on the machine hits alike.
        ratio = statistics.median(one / other for one, other in zip(alone, seconds, strict=True))
        print(f"| {name} | {tokens / statistics.median(seconds):.1f} | {ratio:.2f} x |")


if __name__ == "__main__":
    main()
