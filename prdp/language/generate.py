"""A pair through `generate` of transformers: its own processors, stopping criteria and streamers stay in use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prdp.language.choosing import Rule
from prdp.language.decoding import Pair, steps


def custom_generate(pair: Pair, rule: Rule) -> Callable[..., Tensor]:
    """What `model.generate(..., custom_generate=...)` takes, with the base's network as the model.

        tokens = pair.base.network.generate(**inputs, custom_generate=custom_generate(pair, rule), max_new_tokens=64)

    Processors change the logits of whichever model writes. Beams are not searched.

    Args:
        pair: base and assistant.
        rule: decides at every token.
    """

    def generate(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Tensor:
        if model is not pair.base.network:
            raise ValueError("generate was called of another model than the pair's base")
        if generation_config.num_beams > 1:
            raise ValueError(f"num_beams={generation_config.num_beams}: a pair writes one beam")
        mask = model_kwargs.get("attention_mask")
        chooser = _Processed(logits_processor, generation_config)
        made = steps(
            pair,
            input_ids,
            torch.ones_like(input_ids) if mask is None else mask,
            rule,
            chooser,
            lambda ids: stopping_criteria(ids, None),
            generation_config.max_length - input_ids.shape[1],
        )
        pad = pair.pad if generation_config.pad_token_id is None else generation_config.pad_token_id
        for step in made:
            tokens = torch.where(step.alive, step.tokens, pad)
            input_ids = torch.cat([input_ids, tokens[:, None]], 1)
            if streamer is not None:
                streamer.put(tokens.cpu())
        if streamer is not None:
            streamer.end()
        return input_ids

    return generate


class _Processed:
    """Chooses as `generate` was told to."""

    def __init__(self, processors: Any, config: Any) -> None:
        self._processors, self._samples = processors, bool(config.do_sample)
        self.temperature = float(config.temperature or 1.0) if self._samples else 0.0
        self.top_p = float(config.top_p or 1.0)

    def __call__(self, ids: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        scores = self._processors(ids, logits)
        if self._samples:
            return torch.multinomial(torch.softmax(scores, -1), 1)[:, 0]
        chosen: Tensor = scores.argmax(-1)
        return chosen
