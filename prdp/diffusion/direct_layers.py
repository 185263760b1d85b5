"""Adapted layers and attention that compute at once what peft and diffusers look up anew in every pass.

A pass over few images takes as long as the host needs to start its operations. Much of that is spent on dispatch, on
reading signatures, and on conversions that change nothing.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch


def direct(network: torch.nn.Module) -> None:
    """Have the LoRA layers and the attention of a network compute directly, those that have not been told so.

    Tensors, names and outputs in float32 stay as they are, to the bit. Layers of other kinds (quantized, other methods
    of peft) are left as they are, and so are those whose LoRA has dropout or a bias. Sub-classes take the place of
    peft's and diffusers' classes, so `isinstance` holds.
    """
    ours = _direct_classes()
    for module in network.modules():
        kind = ours.get(type(module))
        if kind is not None and _plain(module):
            module.__class__ = kind
        if hasattr(module, "processor"):
            _arguments(module.processor)


def _plain(module: Any) -> bool:
    """Whether the adapters of a layer, if it has any, are two matrices and nothing else."""
    parts = module._modules
    dropouts, ups = (parts[name].values() if name in parts else () for name in ("lora_dropout", "lora_B"))
    return all(isinstance(one, torch.nn.Identity) for one in dropouts) and all(one.bias is None for one in ups)


@cache
def _direct_classes() -> dict[type, type]:
    from diffusers.models.attention_processor import Attention
    from diffusers.models.transformers.transformer_flux import FluxAttention
    from peft.tuners.lora.layer import Conv2d, Linear

    found = {Attention: _Attention, FluxAttention: _FluxAttention, Conv2d: _Adapted, Linear: _Adapted}
    own = {"__module__": __name__}  # or peft's would be that of its metaclass
    return {kind: type(f"Direct{kind.__name__}", (mixin, kind), own) for kind, mixin in found.items()}


def __getattr__(name: str) -> Any:
    """The classes by name: of networks that are pickled."""
    for kind in _direct_classes().values() if name.startswith("Direct") else ():
        if kind.__name__ == name:
            return kind
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Adapted:
    """A layer with LoRA, of two matrices each."""

    def update_layer(self: Any, *args: Any, **kwargs: Any) -> None:
        """Take one more adapter; of more than two matrices it is peft's to compute."""
        super().update_layer(*args, **kwargs)  # type: ignore[misc]
        if not _plain(self):
            self.__class__ = type(self).__bases__[1]

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs or self.merged_adapters or self.lora_variant:
            of_peft: torch.Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return of_peft
        parts = self._modules
        result: torch.Tensor = parts["base_layer"](x)
        if self._disable_adapters:
            return result
        scales, downs, ups = self.scaling, parts["lora_A"]._modules, parts["lora_B"]._modules
        dtype = result.dtype
        for name in self.active_adapters:
            if name not in downs:
                continue
            down = downs[name]
            own = down.weight.dtype
            # Autocast converts by itself.
            wide = x if x.dtype is own or torch.is_autocast_enabled(x.device.type) else x.to(own)
            change = ups[name](down(wide))
            if change.dtype is torch.float32:
                result = result + change * scales[name]
            else:
                result = torch.add(result, change, alpha=scales[name])  # rounds once less
        return result.to(dtype)


class _Attention:
    """Attention of diffusers, which tells its processor what it is told."""

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        processor = self.processor
        if kwargs and not kwargs.keys() <= _arguments(processor):
            return super().forward(hidden_states, encoder_hidden_states, attention_mask, **kwargs)  # type: ignore[misc]
        return processor(
            self,
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            **kwargs,
        )


class _FluxAttention:
    """The same for the attention of FLUX.1."""

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
        **kwargs: Any,
    ) -> Any:
        processor = self.processor
        given = (hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        if kwargs and not kwargs.keys() <= _arguments(processor):
            return super().forward(*given, **kwargs)  # type: ignore[misc]
        return processor(self, *given, **kwargs)


_known_arguments: dict[type, frozenset[str]] = {}


def _arguments(processor: Any) -> frozenset[str]:
    """Names of what a processor takes. It is known when a network is traced, which signatures cannot be read in."""
    kind = type(processor)
    if kind not in _known_arguments:
        _known_arguments[kind] = frozenset(inspect.signature(kind.__call__).parameters)
    return _known_arguments[kind]
