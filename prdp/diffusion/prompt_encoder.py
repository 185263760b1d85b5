"""What prompts become, kept for prompts that come again; and text encoders that are on their device only when used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from prdp.diffusion.conditions import Conditions

Fields = Mapping[str, torch.Tensor]


class PromptEncoder:
    """Encodes prompts, and the empty or a negative one once.

    With a cache every prompt is encoded alone, so that what it becomes does not depend on which others are known.

    Args:
        encode: prompts -> the fields of `Conditions`, a row each.
        cached_prompts: how many are kept, on the host; those that were asked for last stay. 0 keeps none.
        without_prompt: what the fields of the empty prompt become in the branch without prompt; None keeps them.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[str]], Fields],
        cached_prompts: int = 0,
        without_prompt: Callable[[Fields], Fields] | None = None,
    ) -> None:
        self._encode, self._size = encode, cached_prompts
        self._without_prompt = without_prompt or (lambda fields: fields)
        self._kept: OrderedDict[str, Fields] = OrderedDict()
        self._empty: dict[str | None, Fields] = {}

    def encode(self, prompts: Sequence[str], negative_prompt: str | None = None) -> Conditions:
        """The conditions of prompts, on the device that `encode` gives.

        Args:
            negative_prompt: of the branch without prompt; None for what the family takes there.
        """
        empty = self._empty.get(negative_prompt)
        if empty is None:
            given = self._encode([negative_prompt or ""])
            empty = self._without_prompt(given) if negative_prompt is None else given
            self._empty[negative_prompt] = empty
        if not self._size:
            return Conditions(self._encode(prompts), empty)
        rows = [self._row(prompt) for prompt in prompts]
        fields = {name: torch.cat([row[name] for row in rows]).to(value.device) for name, value in empty.items()}
        return Conditions(fields, empty)

    def _row(self, prompt: str) -> Fields:
        row = self._kept.pop(prompt, None)
        if row is None:
            row = {name: value.cpu() for name, value in self._encode([prompt]).items()}
        self._kept[prompt] = row
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return row


@contextmanager
def on_device(modules: Sequence[torch.nn.Module], device: torch.device) -> Iterator[None]:
    """Modules on a device for the time of the context, and on the host before and after."""
    for module in modules:
        module.to(device)
    try:
        yield
    finally:
        for module in modules:
            module.to("cpu")
