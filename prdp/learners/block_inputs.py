"""In which order gradients of what a block is given are added: first those from inside the block.

FSDP puts a node of its own between a block and its inputs. A tensor that a block uses twice, and others use too, then
has its gradient added in another order than without, and the last bits differ. With such a node everywhere they do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from prdp.diffusion.precision import repeated_blocks


@contextmanager
def added_inside_first(network: torch.nn.Module) -> Iterator[None]:
    """Let repeated blocks have such a node for the time of the context."""
    hooks = [
        block.register_forward_pre_hook(_through_a_node, with_kwargs=True, prepend=True)
        for block in repeated_blocks(network)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _through_a_node(block: torch.nn.Module, arguments: Any, named: Any) -> Any:
    if not torch.is_grad_enabled():
        return None
    leaves, structure = tree_flatten((arguments, named))
    places = [place for place, value in enumerate(leaves) if isinstance(value, torch.Tensor) and value.requires_grad]
    if not places:
        return None
    given: Any = _Node.apply(*(leaves[place] for place in places))
    for place, value in zip(places, given, strict=True):
        leaves[place] = value
    return tree_unflatten(leaves, structure)


class _Node(torch.autograd.Function):
    """Hands everything on."""

    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return inputs

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return gradients
