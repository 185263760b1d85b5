"""Frozen linear layers in 8 or 4 bits under adapters that learn.

A weight is widened while its layer computes, forward and backward, to the precision that the network was stored in, and
from there to that of the pass. So the network is one fixed network, whose log-ratios are as exact as any other's; it is
not quite the one in the folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F

from prdp.config import ModelConfig
from prdp.diffusion.precision import repeated_blocks
from prdp.support.trial import why_not

NF4_BLOCK = 64
"""Numbers that share a scale, of QLoRA."""


class QuantizedLinear(torch.nn.Linear):
    """A frozen linear layer that keeps its weight as whole numbers, `weight`, and their scales, `scale`.

    'int8': round(weight / scale) in one byte, with a scale a row, so that its largest number is 127.
    'nf4': the nearest of 16 normal floats in half a byte, with a scale for every 64 numbers, of bitsandbytes.

    Args:
        layer: in float32 or half precision; on the meta device it gives shapes alone.
        kind: int8 or nf4.

    References:
        Dettmers et al., QLoRA: Efficient Finetuning of Quantized LLMs, 2023, section 3.
    """

    def __init__(self, layer: torch.nn.Linear, kind: str) -> None:
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.kind, self.stored = kind, layer.weight.dtype
        weight, scale = (_to_int8 if kind == "int8" else _to_nf4)(layer.weight.detach())
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.scale = torch.nn.Parameter(scale, requires_grad=False)
        self.bias = layer.bias

    def widened(self) -> torch.Tensor:
        """The weight that it computes with, [out, in], in the precision that the layer had."""
        if self.kind == "int8":
            return (self.weight.float() * self.scale).to(self.stored)
        from bitsandbytes.functional import QuantState, dequantize_4bit

        # As one row: of rows that are no whole number of blocks, bitsandbytes 0.50 takes wrong scales on CPUs.
        row = torch.Size((1, self.out_features * self.in_features))
        state = QuantState(self.scale.data, row, blocksize=NF4_BLOCK, quant_type="nf4", dtype=self.stored)
        wide: torch.Tensor = dequantize_4bit(self.weight.data, state)
        return wide.view(self.out_features, self.in_features)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        device = input.device.type
        if torch.is_autocast_enabled(device):
            input = input.to(torch.get_autocast_dtype(device))
        output: torch.Tensor = _Product.apply(input, self)
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def extra_repr(self) -> str:
        """For people."""
        return f"{super().extra_repr()}, kind={self.kind}"


class _Product(torch.autograd.Function):
    """input @ weight^T; the widened weight is made again in the backward pass instead of being kept for it."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, layer: QuantizedLinear) -> torch.Tensor:
        ctx.layer = layer
        return F.linear(input, layer.widened().to(input.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        [gradient] = gradients
        return gradient @ ctx.layer.widened().to(gradient.dtype), None


@torch.no_grad()
def quantize(network: torch.nn.Module, kind: str, device: str | None = None) -> int:
    """Replace the linear layers of a network's repeated blocks; embeddings, convolutions and the last layer stay.

    Args:
        network: of diffusers, without adapters; what is not replaced stays where it is.
        kind: see `QuantizedLinear`.
        device: that layers go to, one at a time, to be quantised there; None for where they are.

    Returns:
        the number of layers.

    Raises:
        ValueError: a network without such layers.
    """
    count = 0
    for block in repeated_blocks(network):
        for parent, name, layer in list(_linear_layers(block)):
            layer.to(device)
            setattr(parent, name, QuantizedLinear(layer, kind))
            count += 1
    if not count:
        raise ValueError(f"model.quantization={kind}: {type(network).__name__} has no linear layers in repeated blocks")
    return count


def is_quantized(network: torch.nn.Module) -> bool:
    """Whether layers of a network keep their weights in fewer bits."""
    return any(isinstance(one, QuantizedLinear) for one in network.modules())


def quantization_problems(model: ModelConfig, device: str | None) -> list[str]:
    """A package that is missing, or a device that does not quantise, by a small layer.

    Args:
        device: None to look for the package alone.
    """
    if model.quantization is None:
        return []
    chosen = f"model.quantization={model.quantization}"
    if model.quantization == "nf4" and find_spec("bitsandbytes") is None:
        return [f"{chosen}: needs bitsandbytes, which is not installed: pip install 'prdp[bitsandbytes]'"]
    if device is None:
        return []
    dtype, kind = getattr(torch, model.dtype), model.quantization

    def pass_through_a_layer() -> None:
        plain = torch.nn.Linear(64, 64, device=device, dtype=dtype).requires_grad_(False)
        input = torch.ones(1, 64, device=device, dtype=dtype, requires_grad=True)
        QuantizedLinear(plain, kind)(input).sum().backward()

    if (reason := why_not(pass_through_a_layer)) is not None:
        return [f"{chosen}: the device {device} does not compute it: {reason}; use null"]
    return []


def _linear_layers(block: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Linear]]:
    for parent in block.modules():
        for name, layer in parent.named_children():
            if type(layer) is torch.nn.Linear:
                yield parent, name, layer


def _to_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    wide = weight.float()
    scale = wide.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127.0
    return (wide / scale).round().to(torch.int8), scale


def _to_nf4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if weight.is_meta:
        count = weight.numel()
        packed = torch.empty((count + 1) // 2, 1, dtype=torch.uint8, device="meta")
        return packed, torch.empty(-(-count // NF4_BLOCK), device="meta")
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weight.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4")
    return packed, state.absmax
