"""A causal language model of transformers, from a local folder, as a writer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prdp.diffusion.libraries import quiet
from prdp.prompt_writers.base import Answer, Request, continued

DTYPES = ("float32", "bfloat16", "float16")


class LocalModelWriter:
    """Samples from a model; the seed of a batch's first request decides what, on one device and with one batch size.

    Args:
        path: folder of the model and its tokenizer, as `save_pretrained` writes them.
        chat: whether requests go through the tokenizer's chat template; None: where it has one.
        temperature: 0 takes the likeliest word each time.
        top_p: words are drawn from the likeliest that have this much probability together.
        max_tokens: of an answer.
        at_once: requests in a batch.
        device: auto takes the GPU that there is; or such as 'cpu', 'cuda:1'.
        dtype: of the weights.

    Raises:
        ValueError: what `check` raises; a folder that holds no such model.
    """

    def __init__(
        self,
        path: str,
        chat: bool | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int = 2048,
        at_once: int = 4,
        device: str = "auto",
        dtype: str = "float32",
    ) -> None:
        self.check(path, chat, temperature, top_p, max_tokens, at_once, device, dtype)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        quiet()
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(
                path, local_files_only=True, trust_remote_code=False, padding_side="left"
            )
            model: Any = AutoModelForCausalLM.from_pretrained(
                path, local_files_only=True, trust_remote_code=False, dtype=getattr(torch, dtype)
            )
        except (OSError, ValueError) as error:
            raise ValueError(f"path={path}: holds no causal language model with its tokenizer: {error}") from error
        if chat and not tokenizer.chat_template:
            raise ValueError(f"chat=true: the tokenizer in {path} has no chat template")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.pad_token_id is None:
            raise ValueError(f"path={path}: its tokenizer has neither a padding token nor one that ends texts")
        self.name = f"transformers {Path(path).resolve().name}"
        self.at_once = at_once
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model, self._tokenizer = model.eval().to(device), tokenizer
        self._chat = bool(tokenizer.chat_template) if chat is None else chat
        drawing = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        self._settings = {"max_new_tokens": max_tokens, **(drawing if temperature > 0 else {"do_sample": False})}

    @classmethod
    def check(
        cls,
        path: str,
        chat: bool | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int = 2048,
        at_once: int = 4,
        device: str = "auto",
        dtype: str = "float32",
    ) -> None:
        """Check the arguments and that the folder is there, without loading anything."""
        for name, value, allowed, words in (
            ("path", path, (Path(path) / "config.json").is_file(), "a folder with config.json"),
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
            ValueError: a request that is longer than the model reads.
        """
        import torch

        texts = [self._prepared(request.text) for request in requests]
        batch = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=not self._chat)
        length = batch["input_ids"].shape[1]
        longest = getattr(self._model.config, "max_position_embeddings", None)
        if longest is not None and length + self._settings["max_new_tokens"] > longest:
            raise ValueError(
                f"max_tokens={self._settings['max_new_tokens']}: with requests of {length} tokens that is more than "
                f"the {longest} which the model reads; lower it, or per_request"
            )
        batch = batch.to(self._model.device)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(requests[0].seed)
            output = self._model.generate(**batch, **self._settings, pad_token_id=self._tokenizer.pad_token_id)
        ends = self._model.generation_config.eos_token_id
        ends = {*ends} if isinstance(ends, list) else {ends}
        for place, request in enumerate(requests):
            written = output[place, length:].tolist()
            text = self._tokenizer.decode(written, skip_special_tokens=True)
            yield place, Answer(text if self._chat else continued(text, request.first), not ends & {*written})

    def _prepared(self, text: str) -> str:
        if not self._chat:
            return text
        messages = [{"role": "user", "content": text}]
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
