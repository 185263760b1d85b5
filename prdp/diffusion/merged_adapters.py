"""LoRA adapters added into the weights of their network."""

from __future__ import annotations

from typing import Any


def merge_adapters(network: Any) -> int:
    """Add the active adapters of a network to its weights, and take them off; how many layers had some.

    Args:
        network: of diffusers, with adapters of peft; in float32, or the sum is rounded twice.

    Raises:
        ValueError: weights of few bits, which take no sums.
    """
    from diffusers.utils.peft_utils import recurse_remove_peft_layers
    from peft.tuners.tuners_utils import BaseTunerLayer

    from prdp.diffusion.quantization import is_quantized

    if is_quantized(network):
        raise ValueError("adapters are merged into weights that are whole: load the model with model.quantization=null")
    layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.merge(safe_merge=True)
    recurse_remove_peft_layers(network)
    if hasattr(network, "peft_config"):
        del network.peft_config
    network._hf_peft_config_loaded = False
    return len(layers)
