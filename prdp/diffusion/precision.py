"""In which precision a network computes, and how it computes in float32 when its weights are stored in less."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def precision_problem(dtype_key: str, dtype: str, autocast_key: str, autocast: str | None) -> str | None:
    """What is wrong with a pair of storage precision and autocast, in a line that names both keys; None if nothing is.

    Weights of one half precision cannot be normalised with activations of the other.
    """
    if autocast is None or dtype in ("float32", autocast):
        return None
    return f"{autocast_key}={autocast}: must be null or {dtype} for {dtype_key}={dtype}, or set {dtype_key}=float32"


@contextmanager
def conversions_kept(device: torch.device) -> Iterator[None]:
    """Weights that autocast converts are converted once for the whole context, instead of once for each pass in it.

    For passes without gradient between which no weight changes: what was converted is not looked at again. Outside
    of `autocast` nothing is converted.
    """
    import torch

    # It forgets what it has converted when the outermost context is left, whether that one converts or not.
    with torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def upcast(*modules: torch.nn.Module) -> Iterator[None]:
    """Parameters and buffers in half precision are float32 for the time of the context; their values do not change.

    Those of `repeated_blocks` only while their block computes, so that a large network takes little more memory than
    its stored weights. Networks without such blocks are widened whole. What is compiled and has such weights computes
    as it is meanwhile. Without gradient.
    """
    blocks = [block for module in modules for block in repeated_blocks(module)]
    inside = {id(value) for block in blocks for value in _tensors(block)}
    with ExitStack() as held:
        # A whole network asks its outer layers for their precision, and casts by it: they are wide throughout.
        outer = [value for module in modules for value in _tensors(module) if id(value) not in inside]
        for part in (*modules, *blocks):
            _compute_uncompiled(part, held)
        held.callback(_narrow, _widen(outer))
        for block in blocks:
            _widen_in_calls(block, held)
        yield


def repeated_blocks(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The innermost blocks that a network of diffusers or transformers names as its units, where there are several."""
    names = {*(getattr(module, "_repeated_blocks", None) or ()), *(getattr(module, "_no_split_modules", None) or ())}
    named = [one for one in module.modules() if type(one).__name__ in names and one is not module]
    inner = [one for one in named if not any(type(part).__name__ in names for part in _below(one))]
    counts = Counter(type(one) for one in inner)
    return [one for one in inner if counts[type(one)] > 1]


def _below(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    return (part for part in module.modules() if part is not module)


def _tensors(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    return chain(module.parameters(), module.buffers())


def _widen(tensors: Iterable[torch.Tensor]) -> dict[torch.Tensor, torch.Tensor]:
    """Make half precision float32; what the tensors held."""
    half = {value: value.data for value in tensors if _is_half(value)}
    for value, data in half.items():
        value.data = data.float()
    return half


def _narrow(half: dict[torch.Tensor, torch.Tensor]) -> None:
    for value, data in half.items():
        value.data = data
    half.clear()


def _compute_uncompiled(module: torch.nn.Module, held: ExitStack) -> None:
    """A program would be traced anew for wide weights, and with the hooks that widen them."""
    if module._compiled_call_impl is not None and any(_is_half(value) for value in _tensors(module)):
        held.callback(setattr, module, "_compiled_call_impl", module._compiled_call_impl)
        module._compiled_call_impl = None


def _is_half(value: torch.Tensor) -> bool:
    import torch

    return value.dtype in (torch.bfloat16, torch.float16)


def _widen_in_calls(block: torch.nn.Module, held: ExitStack) -> None:
    half: dict[torch.Tensor, torch.Tensor] = {}
    if not any(_is_half(value) for value in _tensors(block)):
        return

    def before(*_: Any) -> None:
        half.update(_widen(_tensors(block)))

    def after(*_: Any) -> None:
        _narrow(half)

    held.callback(_narrow, half)
    held.callback(block.register_forward_pre_hook(before).remove)
    held.callback(block.register_forward_hook(after, always_call=True).remove)
