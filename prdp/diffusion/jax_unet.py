"""The UNet of Stable Diffusion 1.x and 2.x as one JAX function of its tensors, under diffusers' own tensor names.

diffusers has no JAX models any more, and none is needed here: a UNet is a function of tensors, latents, timesteps and
text states, and the tensors of `UNet2DConditionModel`, with the LoRA factors that peft puts beside them, are its
arguments as they are. So weights travel between the torch sampler and a JAX learner without renaming, and share their
checksum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

Tensors = Mapping[str, jax.Array]

DOWN_BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D")
UP_BLOCKS = ("CrossAttnUpBlock2D", "UpBlock2D")
_ONLY: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",),
    "addition_embed_type": (None,),
    "attention_type": ("default", None),
    "center_input_sample": (False, None),
    "class_embed_type": (None,),
    "conv_in_kernel": (3, None),
    "conv_out_kernel": (3, None),
    "cross_attention_norm": (None,),
    "dual_cross_attention": (False, None),
    "encoder_hid_dim_type": (None,),
    "encoder_hid_dim": (None,),
    "mid_block_scale_factor": (1, None),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_class_embeds": (None,),
    "only_cross_attention": (False, None),
    "resnet_out_scale_factor": (1.0, None),
    "resnet_skip_time_act": (False, None),
    "resnet_time_scale_shift": ("default", None),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional", None),
    "timestep_post_act": (None,),
    "transformer_layers_per_block": (1, None),
}


@dataclass(frozen=True)
class UNet:
    """The architecture: everything but the tensors.

    Attributes:
        config: of a diffusers `UNet2DConditionModel`.
        lora_scale: alpha / rank of the LoRA factors among the tensors, when there are any.
        dtype: of the arithmetic; norms, softmax and the result are float32 in any case.
        remat: recompute each block in the backward pass instead of keeping its activations.
    """

    config: Mapping[str, Any] = field(hash=False)
    lora_scale: float = 1.0
    dtype: Any = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for a configuration that this file does not compute; names the key."""
        for key, allowed in _ONLY.items():
            value = self.config.get(key, allowed[0])
            if value not in allowed:
                raise ValueError(f"the JAX UNet does not know {key}={value!r}, only {allowed[0]!r}")
        for key, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            strange = [name for name in self.config[key] if name not in known]
            if strange:
                raise ValueError(f"the JAX UNet does not know {key}={strange[0]!r}, only {', '.join(known)}")

    def __call__(self, tensors: Tensors, latents: jax.Array, timesteps: jax.Array, states: jax.Array) -> jax.Array:
        """Network output, float32 [B, C, h, w].

        Args:
            tensors: name -> array, as `UNet2DConditionModel.named_parameters` names them.
            latents: float32 [B, C, h, w]; h and w divisible by 2 for every level but the last.
            timesteps: int32 [B].
            states: text states [B, tokens, width].
        """
        config = self.config
        channels = list(config["block_out_channels"])
        heads = config.get("num_attention_heads") or config["attention_head_dim"]
        heads = [heads] * len(channels) if isinstance(heads, int) else list(heads)
        layers = config["layers_per_block"]
        layers = [layers] * len(channels) if isinstance(layers, int) else list(layers)
        states = states.astype(self.dtype)
        time = _time_embedding(timesteps, channels[0], config["flip_sin_to_cos"], config["freq_shift"])
        time = self._linear(tensors, "time_embedding.linear_1", time.astype(self.dtype))
        time = jax.nn.silu(self._linear(tensors, "time_embedding.linear_2", jax.nn.silu(time)))

        x = self._conv(tensors, "conv_in", latents.astype(self.dtype))
        skips = [x]
        for level, kind in enumerate(config["down_block_types"]):
            block = f"down_blocks.{level}"
            for layer in range(layers[level]):
                x = self._resnet(tensors, f"{block}.resnets.{layer}", x, time)
                if kind == "CrossAttnDownBlock2D":
                    x = self._transformer(tensors, f"{block}.attentions.{layer}", x, states, heads[level])
                skips.append(x)
            if level < len(channels) - 1:
                padding = config["downsample_padding"]
                x = self._conv(tensors, f"{block}.downsamplers.0.conv", x, stride=2, padding=padding)
                skips.append(x)

        x = self._resnet(tensors, "mid_block.resnets.0", x, time)
        x = self._transformer(tensors, "mid_block.attentions.0", x, states, heads[-1])
        x = self._resnet(tensors, "mid_block.resnets.1", x, time)

        for level, kind in enumerate(config["up_block_types"]):
            block = f"up_blocks.{level}"
            for layer in range(layers[-1 - level] + 1):
                x = self._resnet(
                    tensors, f"{block}.resnets.{layer}", jnp.concatenate([x, skips.pop()], axis=1), time
                )
                if kind == "CrossAttnUpBlock2D":
                    x = self._transformer(tensors, f"{block}.attentions.{layer}", x, states, heads[-1 - level])
            if level < len(channels) - 1:
                x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
                x = self._conv(tensors, f"{block}.upsamplers.0.conv", x)

        x = jax.nn.silu(self._group_norm(tensors, "conv_norm_out", x, config["norm_eps"]))
        return self._conv(tensors, "conv_out", x).astype(jnp.float32)

    def _resnet(self, tensors: Tensors, name: str, x: jax.Array, time: jax.Array) -> jax.Array:
        return self._block(_resnet)(self, name, _below(tensors, name), x, time)

    def _transformer(self, tensors: Tensors, name: str, x: jax.Array, states: jax.Array, heads: int) -> jax.Array:
        return self._block(partial(_transformer, heads=heads))(self, name, _below(tensors, name), x, states)

    def _block(self, function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return jax.checkpoint(function, static_argnums=(0, 1)) if self.remat else function

    def _linear(self, tensors: Tensors, name: str, x: jax.Array) -> jax.Array:
        """A torch Linear, with the LoRA factors that peft put beside it."""
        weight, bias = _affine(tensors, name)
        y = x @ weight.astype(self.dtype).T
        down = tensors.get(f"{name}.lora_A.default.weight")
        if down is not None:
            up = tensors[f"{name}.lora_B.default.weight"]
            y = y + self.lora_scale * ((x @ down.astype(self.dtype).T) @ up.astype(self.dtype).T)
        return y if bias is None else y + bias.astype(self.dtype)

    def _conv(
        self, tensors: Tensors, name: str, x: jax.Array, stride: int = 1, padding: int | None = None
    ) -> jax.Array:
        """A torch Conv2d, with the LoRA factors that peft put beside it: one of its kernel's size, then one of 1x1."""
        weight, bias = _affine(tensors, name)
        pad = weight.shape[-1] // 2 if padding is None else padding
        y = _convolve(x, weight.astype(self.dtype), stride, pad)
        down = tensors.get(f"{name}.lora_A.default.weight")
        if down is not None:
            up = tensors[f"{name}.lora_B.default.weight"]
            low = _convolve(x, down.astype(self.dtype), stride, pad)
            y = y + self.lora_scale * _convolve(low, up.astype(self.dtype), 1, 0)
        return y if bias is None else y + bias.astype(self.dtype)[:, None, None]

    def _group_norm(self, tensors: Tensors, name: str, x: jax.Array, epsilon: float) -> jax.Array:
        groups = self.config["norm_num_groups"]
        parts = x.astype(jnp.float32).reshape(x.shape[0], groups, -1)
        normal = _normalise(parts, epsilon).reshape(x.shape)
        weight, bias = _affine(tensors, name)
        assert bias is not None
        return (normal * weight[:, None, None] + bias[:, None, None]).astype(self.dtype)

    def _layer_norm(self, tensors: Tensors, name: str, x: jax.Array) -> jax.Array:
        weight, bias = _affine(tensors, name)
        return (_normalise(x.astype(jnp.float32), 1e-5) * weight + bias).astype(self.dtype)


def _resnet(unet: UNet, name: str, tensors: Tensors, x: jax.Array, time: jax.Array) -> jax.Array:
    epsilon = unet.config["norm_eps"]
    y = jax.nn.silu(unet._group_norm(tensors, f"{name}.norm1", x, epsilon))
    y = unet._conv(tensors, f"{name}.conv1", y)
    y = y + unet._linear(tensors, f"{name}.time_emb_proj", time)[:, :, None, None]
    y = jax.nn.silu(unet._group_norm(tensors, f"{name}.norm2", y, epsilon))
    y = unet._conv(tensors, f"{name}.conv2", y)
    shortcut = f"{name}.conv_shortcut"
    return y + (unet._conv(tensors, shortcut, x) if _below(tensors, shortcut) else x)


def _transformer(
    unet: UNet, name: str, tensors: Tensors, x: jax.Array, states: jax.Array, *, heads: int
) -> jax.Array:
    """Transformer2DModel of one BasicTransformerBlock."""
    linear = bool(unet.config.get("use_linear_projection"))
    project = unet._linear if linear else unet._conv
    y = unet._group_norm(tensors, f"{name}.norm", x, 1e-6)
    y = y if linear else project(tensors, f"{name}.proj_in", y)
    y = y.reshape(*y.shape[:2], -1).swapaxes(1, 2)
    y = project(tensors, f"{name}.proj_in", y) if linear else y

    block = f"{name}.transformer_blocks.0"
    normal = unet._layer_norm(tensors, f"{block}.norm1", y)
    y = y + _attention(unet, f"{block}.attn1", tensors, normal, normal, heads)
    y = y + _attention(
        unet, f"{block}.attn2", tensors, unet._layer_norm(tensors, f"{block}.norm2", y), states, heads
    )
    hidden = unet._linear(tensors, f"{block}.ff.net.0.proj", unet._layer_norm(tensors, f"{block}.norm3", y))
    hidden, gate = jnp.split(hidden, 2, axis=-1)
    y = y + unet._linear(tensors, f"{block}.ff.net.2", hidden * jax.nn.gelu(gate, approximate=False))

    y = project(tensors, f"{name}.proj_out", y) if linear else y
    y = y.swapaxes(1, 2).reshape(x.shape[0], -1, *x.shape[2:])
    return x + (y if linear else project(tensors, f"{name}.proj_out", y))


def _attention(
    unet: UNet, name: str, tensors: Tensors, x: jax.Array, context: jax.Array, heads: int
) -> jax.Array:
    def split(part: str, source: jax.Array) -> jax.Array:
        projected = unet._linear(tensors, f"{name}.{part}", source)
        # XLA on a CPU has no products of half precision that add up in float32, which JAX asks for.
        wide = jax.default_backend() == "cpu"
        return projected.astype(jnp.float32 if wide else unet.dtype).reshape(*projected.shape[:2], heads, -1)

    attended = jax.nn.dot_product_attention(split("to_q", x), split("to_k", context), split("to_v", context))
    return unet._linear(tensors, f"{name}.to_out.0", attended.astype(unet.dtype).reshape(*x.shape[:2], -1))


def _convolve(x: jax.Array, weight: jax.Array, stride: int, padding: int) -> jax.Array:
    pads = [(padding, padding)] * 2
    return jax.lax.conv_general_dilated(
        x, weight, (stride, stride), pads, dimension_numbers=("NCHW", "OIHW", "NCHW")
    )


def _affine(tensors: Tensors, name: str) -> tuple[jax.Array, jax.Array | None]:
    """Weight and bias of a layer; peft moves those of a layer with an adapter into its `base_layer`."""
    if f"{name}.base_layer.weight" in tensors:
        name = f"{name}.base_layer"
    return tensors[f"{name}.weight"], tensors.get(f"{name}.bias")


def _below(tensors: Tensors, name: str) -> dict[str, jax.Array]:
    return {key: value for key, value in tensors.items() if key.startswith(f"{name}.")}


def _normalise(x: jax.Array, epsilon: float) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)


def _time_embedding(timesteps: jax.Array, width: int, flip_sin_to_cos: bool, shift: float) -> jax.Array:
    """Sinusoids float32 [B, width] of Ho et al. (2020), in diffusers' order."""
    half = width // 2
    rates = jnp.exp(-math.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / (half - shift))
    angles = timesteps.astype(jnp.float32)[:, None] * rates
    parts = (jnp.cos(angles), jnp.sin(angles)) if flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
    return jnp.pad(jnp.concatenate(parts, axis=1), ((0, 0), (0, width % 2)))


def check_adapters(names: Iterable[str]) -> None:
    """Raise ValueError for an adapter, among tensor names, that this file does not compute; names the tensor."""
    for name in names:
        _, adapted, rest = name.partition(".lora_")
        if adapted and rest not in ("A.default.weight", "B.default.weight"):
            raise ValueError(f"the JAX UNet knows plain LoRA factors under the name 'default' alone, not {name}")
