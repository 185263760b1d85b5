"""Layers of diffusers' transformers under the names of the models' authors, who keep queries, keys and values in one.

The names are those of Stability AI, Black Forest Labs and Tongyi, which ComfyUI and kohya's trainers keep. A layer of
theirs has the rows of one or several of diffusers', one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Parts = tuple[str, ...]
"""Layers of diffusers whose rows are those of one layer of the authors."""


@dataclass(frozen=True)
class Layout:
    """How a transformer's layers are called.

    Attributes:
        words: what messages call the model.
        blocks: diffusers' name of a list of blocks, the authors', and of a block the authors' layers and their parts.
        ends: the authors' layers outside of blocks, and diffusers'.
        others: whether all other layers have one name; `parts` knows it with dots alone.
        swapped: layers of the authors whose halves, shift and scale, are the other way round in diffusers; one in a
            block is where it has these two alone, twice as many rows as columns.
        norms: the end of the name of a norm's weights.
    """

    words: str
    blocks: tuple[tuple[str, str, Mapping[str, Parts]], ...]
    ends: Mapping[str, str]
    others: bool = False
    swapped: tuple[str, ...] = ()
    norms: str = "weight"

    @cached_property
    def _of_diffusers(self) -> dict[str, dict[str, tuple[str, str]]]:
        return {
            theirs: {part: (ours, layer) for layer, parts in table.items() for part in parts}
            for theirs, ours, table in self.blocks
        }

    def original(self, layer: str) -> tuple[str, Parts] | None:
        """The authors' layer that a layer of diffusers is in, and all parts of it; None where there is none."""
        for theirs, name in self.ends.items():
            if name == layer:
                return theirs, (layer,)
        match = re.fullmatch(r"(\w+)\.(\d+)\.(.+)", layer)
        if match is not None and match[3] in (found := self._of_diffusers.get(match[1], {})):
            block, inner = found[match[3]]
            table = next(table for theirs, _, table in self.blocks if theirs == match[1])
            return f"{block}.{match[2]}.{inner}", tuple(f"{match[1]}.{match[2]}.{part}" for part in table[inner])
        return (layer, (layer,)) if self.others else None

    def parts(self, name: str) -> tuple[str, Parts] | None:
        """The inverse: the authors' layer of a name with dots or with kohya's underscores, and its parts."""
        for theirs, layer in self.ends.items():
            if name in (theirs, _underscored(theirs)):
                return theirs, (layer,)
        for theirs, block, table in self.blocks:
            match = re.fullmatch(rf"{block}[._](\d+)[._](.+)", name)
            for inner, parts in table.items() if match else ():
                if match and match[2] in (inner, _underscored(inner)):
                    return f"{block}.{match[1]}.{inner}", tuple(f"{theirs}.{match[1]}.{part}" for part in parts)
        return (name, (name,)) if self.others and "." in name else None

    def is_swapped(self, original: str, rows: int, columns: int) -> bool:
        """Whether shift and scale are the other way round in diffusers."""
        return original in self.swapped or (
            rows == 2 * columns and any(original.endswith(f".{one}") for one in self.swapped)
        )


def _underscored(name: str) -> str:
    return name.replace(".", "_")


def swapped_halves(rows: torch.Tensor) -> torch.Tensor:
    """The second half of the rows before the first."""
    import torch

    return torch.cat(rows.chunk(2)[::-1])


def part_rows(layer: str, width: int) -> int:
    """Rows of a part of a layer that takes states of a width: FLUX keeps a layer of four times as many beside three."""
    return 4 * width if layer.endswith(".proj_mlp") else width


def kohya_name(original: str) -> str:
    """What kohya's trainers call the adapter of a layer of a transformer."""
    return f"lora_unet_{_underscored(original)}"


_Q, _K, _V = ("to_q", "to_k", "to_v")
_ADDED = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")


def _of(prefix: str) -> Parts:
    return tuple(f"{prefix}.{one}" for one in (_Q, _K, _V))


STABLE_DIFFUSION_3_LAYERS = Layout(
    words="Stable Diffusion 3",
    blocks=(
        (
            "transformer_blocks",
            "joint_blocks",
            {
                "x_block.attn.qkv": _of("attn"),
                "x_block.attn.proj": ("attn.to_out.0",),
                "x_block.attn.ln_q": ("attn.norm_q",),
                "x_block.attn.ln_k": ("attn.norm_k",),
                "x_block.attn2.qkv": _of("attn2"),
                "x_block.attn2.proj": ("attn2.to_out.0",),
                "x_block.attn2.ln_q": ("attn2.norm_q",),
                "x_block.attn2.ln_k": ("attn2.norm_k",),
                "x_block.mlp.fc1": ("ff.net.0.proj",),
                "x_block.mlp.fc2": ("ff.net.2",),
                "x_block.adaLN_modulation.1": ("norm1.linear",),
                "context_block.attn.qkv": _ADDED,
                "context_block.attn.proj": ("attn.to_add_out",),
                "context_block.attn.ln_q": ("attn.norm_added_q",),
                "context_block.attn.ln_k": ("attn.norm_added_k",),
                "context_block.mlp.fc1": ("ff_context.net.0.proj",),
                "context_block.mlp.fc2": ("ff_context.net.2",),
                "context_block.adaLN_modulation.1": ("norm1_context.linear",),
            },
        ),
    ),
    ends={
        "x_embedder.proj": "pos_embed.proj",
        "pos_embed": "pos_embed.pos_embed",
        "context_embedder": "context_embedder",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
    },
    swapped=("final_layer.adaLN_modulation.1", "context_block.adaLN_modulation.1"),
)
FLUX_LAYERS = Layout(
    words="FLUX.1",
    blocks=(
        (
            "transformer_blocks",
            "double_blocks",
            {
                "img_attn.qkv": _of("attn"),
                "img_attn.proj": ("attn.to_out.0",),
                "img_attn.norm.query_norm": ("attn.norm_q",),
                "img_attn.norm.key_norm": ("attn.norm_k",),
                "img_mlp.0": ("ff.net.0.proj",),
                "img_mlp.2": ("ff.net.2",),
                "img_mod.lin": ("norm1.linear",),
                "txt_attn.qkv": _ADDED,
                "txt_attn.proj": ("attn.to_add_out",),
                "txt_attn.norm.query_norm": ("attn.norm_added_q",),
                "txt_attn.norm.key_norm": ("attn.norm_added_k",),
                "txt_mlp.0": ("ff_context.net.0.proj",),
                "txt_mlp.2": ("ff_context.net.2",),
                "txt_mod.lin": ("norm1_context.linear",),
            },
        ),
        (
            "single_transformer_blocks",
            "single_blocks",
            {
                "linear1": (*_of("attn"), "proj_mlp"),
                "linear2": ("proj_out",),
                "norm.query_norm": ("attn.norm_q",),
                "norm.key_norm": ("attn.norm_k",),
                "modulation.lin": ("norm.linear",),
            },
        ),
    ),
    ends={
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
        "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
        "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
    },
    swapped=("final_layer.adaLN_modulation.1",),
    norms="scale",
)
Z_IMAGE_LAYERS = Layout(
    words="Z-Image",
    blocks=tuple(
        (
            name,
            name,
            {
                "attention.qkv": _of("attention"),
                "attention.out": ("attention.to_out.0",),
                "attention.q_norm": ("attention.norm_q",),
                "attention.k_norm": ("attention.norm_k",),
            },
        )
        for name in ("layers", "noise_refiner", "context_refiner")
    ),
    ends={
        "x_embedder": "all_x_embedder.2-1",
        "final_layer.linear": "all_final_layer.2-1.linear",
        "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
    },
    others=True,
)
LAYOUTS = {"stable_diffusion_3": STABLE_DIFFUSION_3_LAYERS, "flux": FLUX_LAYERS, "z_image": Z_IMAGE_LAYERS}
"""`model.family` -> of its transformer."""


def original_tensors(layout: Layout, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a whole transformer under the authors' names.

    Raises:
        ValueError: a tensor that the authors' transformer does not have; names it.
    """
    import torch

    found: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        layer, _, end = name.rpartition(".")
        if end not in ("weight", "bias"):
            # A tensor that is no layer's, such as positions.
            layer, end = name, ""
        place = layout.original(layer)
        if place is None:
            raise ValueError(f"transformer: {name} has no name in the files of the model's authors")
        original, parts = place
        if layer != parts[0]:
            continue
        if len(parts) > 1:
            value = torch.cat([state[f"{part}.{end}"] for part in parts])
        columns = state[f"{layer}.weight"].shape[-1] if end else 0
        if layout.is_swapped(original, value.shape[0], columns):
            value = swapped_halves(value)
        end = layout.norms if original.endswith("_norm") and end == "weight" else end
        found[f"{original}.{end}" if end else original] = value
    return found
