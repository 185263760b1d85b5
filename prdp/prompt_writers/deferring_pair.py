"""Two language models that write together as a writer: a folder of `prdp collm train`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from prdp.language.settings import DecodeConfig, WritingConfig
from prdp.prompt_writers.base import Answer, Request, continued
from prdp.worlds.shapes.scene import MAX_OBJECTS

DTYPES = ("float32", "bfloat16", "float16")


class DeferringPairWriter:
    """The base writes, and leaves some tokens to its assistant; the seed of a request decides what is drawn.

    Args:
        pair: folder of the pair.
        eta: probability of deferral above which the assistant writes; None takes what `prdp collm calibrate` found.
        temperature: 0 takes the likeliest token each time.
        top_p: tokens are drawn from the likeliest that have this much probability together.
        max_tokens: of an answer.
        at_once: requests in a batch.
        device: auto takes the GPU that there is; or such as 'cpu', 'cuda:1'.
        dtype: of the base's weights.

    Raises:
        ValueError: what `check` raises; a folder that holds no such pair; one that was not calibrated, without `eta`.
    """

    def __init__(
        self,
        pair: str,
        eta: float | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int = 2048,
        at_once: int = 4,
        device: str = "auto",
        dtype: str = "float32",
    ) -> None:
        self.check(pair, eta, temperature, top_p, max_tokens, at_once, device, dtype)
        from prdp.language.building import decoding_of
        from prdp.language.opening import open_pair

        # Eta was found for the likeliest tokens; draws have other quantiles, near enough for a writer.
        writing = WritingConfig(max_new_tokens=max_tokens, batch_size=at_once)
        opened = open_pair(DecodeConfig(pair=pair, writing=writing, device=device, dtype=dtype), ("trained",))
        self._eta = opened.eta("trained", "auto" if eta is None else str(eta))
        self._pair = opened.pairs["trained"]
        self._how = dataclasses.replace(decoding_of(writing), temperature=temperature, top_p=top_p)
        self.name = f"deferring pair {Path(pair).resolve().name}"
        self.at_once = at_once
        self.tokens, self.deferred = 0, 0
        """Tokens written so far, and those of them that the assistant wrote."""

    @classmethod
    def check(
        cls,
        pair: str,
        eta: float | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int = 2048,
        at_once: int = 4,
        device: str = "auto",
        dtype: str = "float32",
    ) -> None:
        """Check the arguments and that the folder is there, without loading anything."""
        for name, value, allowed, words in (
            ("pair", pair, (Path(pair) / "collm.json").is_file(), "a folder with collm.json"),
            ("eta", eta, eta is None or 0 < eta < 1, "above 0 and below 1, or null"),
            ("temperature", temperature, 0 <= temperature < math.inf, "at least 0"),
            ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1"),
            ("max_tokens", max_tokens, max_tokens >= 1, "at least 1"),
            ("at_once", at_once, at_once >= 1, "at least 1"),
            ("dtype", dtype, dtype in DTYPES, f"one of {', '.join(DTYPES)}"),
        ):
            if not allowed:
                raise ValueError(f"{name}={value}: must be {words}")

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """See `Writer.answers`; all requests are one batch.

        Raises:
            ValueError: a request that is longer than the models read.
        """
        for place, (request, (text, cut)) in enumerate(
            zip(requests, self._texts([one.text for one in requests], requests[0].seed), strict=True)
        ):
            yield place, Answer(continued(text, request.first), cut)

    def _texts(self, prompts: Sequence[str], seed: int) -> list[tuple[str, bool]]:
        """What is written behind prompts, and whether it was cut off."""
        from prdp.language.choosing import SCORES, Above
        from prdp.language.decoding import decode
        from prdp.language.records import encode_prompt

        rule = Above(SCORES["deferral"], self._eta)
        tokens = [encode_prompt(self._pair.tokenizer, prompt) for prompt in prompts]
        found = []
        for one in decode(self._pair, tokens, lambda _: rule, dataclasses.replace(self._how, seed=seed)):
            self.tokens += len(one.tokens)
            self.deferred += sum(one.by_assistant)
            found.append((one.text, one.tokens[-1] not in self._pair.ends))
        return found


class ScenePairWriter(DeferringPairWriter):
    """A pair of the embedded task: it is given the records of scenes of a skill, and writes their prompts.

    Arguments are those of `DeferringPairWriter`; `max_tokens` and `at_once` are of a prompt and of prompts in a batch.
    """

    needs_scenes = True

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """See `Writer.answers`.

        Raises:
            ValueError: the skill has scenes of more objects than the task.
        """
        from prdp.language.shapes_task import MOST_OBJECTS, record_of, without_marks

        for place, request in enumerate(requests):
            assert request.scenes is not None, "the skill has no scenes"
            if max(request.scenes.objects) > MOST_OBJECTS:
                raise ValueError(
                    f"the skill's scenes have up to {max(request.scenes.objects)} of {MAX_OBJECTS} objects, the pair's "
                    f"task has {MOST_OBJECTS}: set skill.scenes.objects=[1,{MOST_OBJECTS}]"
                )
            rng = np.random.default_rng(request.seed)
            records = [record_of(request.scenes.draw(rng), rng) for _ in range(request.count)]
            texts = [without_marks(text) for text, _ in self._texts(records, request.seed)]
            yield place, Answer("\n".join(f"{number}. {text}" for number, text in enumerate(texts, request.first)))
