"""In which order gradients of what a block is given are added: first those from inside the block.

FSDP puts a node of its own between a block and its inputs. A tensor that a block uses twice, and others use too, then
has its gradient added in another order than without, and the last bits differ. With such a node everywhere they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

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
    inputs: list[torch.Tensor] = []
    _mapped((arguments, named), inputs.append)
    if not inputs:
        return None
    given = iter(_Node.apply(*inputs))  # type: ignore[no-untyped-call]
    return _mapped((arguments, named), lambda _: next(given))


def _mapped(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """The same with tensors that have a gradient changed, in tuples, lists and mappings."""
    if isinstance(value, torch.Tensor):
        return change(value) if value.requires_grad else value
    if isinstance(value, dict):
        return {name: _mapped(one, change) for name, one in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_mapped(one, change) for one in value)
    return value


class _Node(torch.autograd.Function):
    """Hands everything on."""

    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return inputs

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return gradients
