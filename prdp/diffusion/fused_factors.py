"""LoRA factors of layers that are one layer for a transformer's authors, and for kohya's trainers and ComfyUI.

Queries, keys and values of diffusers, each with factors of its own, are one adapter there, whose rank is the sum of
theirs: its down has theirs one above the other, its up theirs along the diagonal. Where they share one down, as such
adapters mostly do that were trained so, so does it. Names and layouts were read in kohya's `networks/lora_sd3.py` and
`networks/lora_flux.py` (sd-scripts) and in ComfyUI's `comfy/lora.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from prdp.diffusion.original_layers import (
    FLUX_LAYERS,
    STABLE_DIFFUSION_3_LAYERS,
    Z_IMAGE_LAYERS,
    Layout,
    kohya_name,
    part_rows,
    swapped_halves,
)
from prdp.support.errors import StartError

if TYPE_CHECKING:
    import torch

Factors = tuple["torch.Tensor", "torch.Tensor"]
"""down [rank, in], up [out, rank]; of convolutions with their kernel behind."""
_BEGINNING = r"(?:diffusion_model\.|transformer\.|base_model\.model\.)?"
_FACTOR = re.compile(
    rf"(?:lora_unet_|{_BEGINNING})(.+?)\.(?:(alpha)|(lora_down|lora_A|lora\.down)(?:\.default)?\.weight|"
    r"(?:lora_up|lora_B|lora\.up)(?:\.default)?\.weight)"
)
_MARKS = (
    (STABLE_DIFFUSION_3_LAYERS, rf"(?:lora_unet_|{_BEGINNING})joint_blocks[._]\d"),
    (FLUX_LAYERS, rf"{_BEGINNING}(?:double|single)_blocks\.\d+\.(?!processor)"),
    (Z_IMAGE_LAYERS, rf"{_BEGINNING}(?:layers|noise_refiner|context_refiner)\.\d+\.attention\.(?:qkv|out)\."),
)
"""Beginnings of names of layers that are not diffusers'. Kohya's of FLUX.1 and Z-Image diffusers converts itself."""


_FUSED_OF_FLUX = re.compile(
    rf"(?:lora_unet_|{_BEGINNING})(?:single_blocks[._]\d+[._](linear1)|double_blocks[._]\d+[._](?:img|txt)_attn[._]qkv)"
    r"\.(?:lora_up|lora_B)\.weight"
)
FLUX_WIDTH = 3072
"""Of the transformers of FLUX.1 that are released."""


def check_flux_rows(where: str, raw: Mapping[str, torch.Tensor]) -> None:
    """Check what diffusers splits, of tensors of FLUX.1 under kohya's names; it tells nothing where it cannot.

    Raises:
        StartError: rows that are no queries, keys and values, or those of another width; names the tensor.
    """
    for name, value in raw.items():
        found = _FUSED_OF_FLUX.fullmatch(name)
        if found is None or value.ndim == 0:
            continue
        rows, expected = value.shape[0], 7 * FLUX_WIDTH
        if found[1] and rows != expected:
            raise StartError(
                f"{where}: {name}: has {rows} rows, expected {expected}: of a network {FLUX_WIDTH} wide queries, keys, "
                "values and the MLP together, which diffusers splits at this width alone. Of another width give the "
                "file in the format of diffusers"
            )
        if not found[1] and rows % 3:
            raise StartError(f"{where}: {name}: has {rows} rows, expected a multiple of 3: queries, keys and values")


def authors_layout(names: Iterable[str]) -> Layout | None:
    """The layout whose authors' names a LoRA's tensors have; diffusers reads few such files."""
    given = list(names)
    return next((one for one, mark in _MARKS if any(re.match(mark, name) for name in given)), None)


def split_factors(where: str, raw: Mapping[str, torch.Tensor]) -> dict[str, tuple[Factors, float, str]]:
    """Layer of diffusers -> factors, alpha / rank of the file's layer, and a name in the file.

    Args:
        where: begins messages.
        raw: tensors of a file that `authors_layout` knows; kohya's of text encoders are not looked at.

    Raises:
        StartError: a tensor that belongs to no layer, lacks its counterpart, or does not fit it; names it.
    """
    layout = authors_layout(raw)
    assert layout is not None
    found: dict[str, dict[str, str]] = {}
    for name in raw:
        if name.startswith("lora_te"):
            continue
        match = _FACTOR.fullmatch(name)
        if match is None or layout.parts(match[1]) is None:
            raise StartError(f"{where}: {name}: is no tensor of a LoRA of {layout.words}'s transformer")
        part = "alpha" if match[2] else "down" if match[3] else "up"
        original = layout.parts(match[1])
        assert original is not None
        if part in found.setdefault(original[0], {}):
            raise StartError(f"{where}: {name} and {found[original[0]][part]} are the same factor of one layer")
        found[original[0]][part] = name
    layers: dict[str, tuple[Factors, float, str]] = {}
    for original_name, names in found.items():
        for part, words in (("down", "down (lora_A)"), ("up", "up (lora_B)")):
            if part not in names:
                raise StartError(f"{where}: {next(iter(names.values()))}: its other factor, {words}, is missing")
        down, up = raw[names["down"]], raw[names["up"]]
        parts = layout.parts(original_name)
        assert parts is not None
        shares = [part_rows(part, 1) for part in parts[1]]
        if down.ndim < 2 or up.ndim < 2 or up.shape[1] != down.shape[0] or up.shape[0] % sum(shares):
            raise StartError(
                f"{where}: {names['up']}: has shape {list(up.shape)}, and down {list(down.shape)}; expected "
                f"[out, rank] and [rank, in], out in {sum(shares)} equal parts"
            )
        rank = down.shape[0]
        scale = float(raw[names["alpha"]]) / rank if "alpha" in names else 1.0
        if layout.is_swapped(original_name, up.shape[0], down.shape[1]):
            up = swapped_halves(up)
        sizes = [share * up.shape[0] // sum(shares) for share in shares]
        for layer, factors in _split(parts[1], sizes, down, up).items():
            if layer in layers:
                raise StartError(f"{where}: {names['down']} and {layers[layer][2]} are both of layer {layer}")
            layers[layer] = (factors, scale, names["down"])
    return layers


def joined_factors(layout: Layout, layers: Mapping[str, Factors]) -> dict[str, Factors]:
    """Name of kohya's -> factors, of factors of diffusers' layers whose scale is 1; layers that lack are zero.

    Raises:
        KeyError: a layer that the authors' transformer does not have; its argument is the layer.
    """
    groups: dict[str, tuple[str, ...]] = {}
    for layer in layers:
        place = layout.original(layer)
        if place is None:
            raise KeyError(layer)
        groups[place[0]] = place[1]
    found = {}
    for original, parts in groups.items():
        down, up = _joined(parts, {part: layers[part] for part in parts if part in layers})
        if layout.is_swapped(original, up.shape[0], down.shape[1]):
            up = swapped_halves(up)
        found[kohya_name(original)] = (down, up)
    return found


def _joined(parts: tuple[str, ...], given: Mapping[str, Factors]) -> Factors:
    import torch

    if len(parts) == 1:
        return given[parts[0]]
    downs, ups = zip(*given.values(), strict=True)
    if len(given) == len(parts) and all(one.shape == downs[0].shape and one.equal(downs[0]) for one in downs):
        return downs[0], torch.cat(ups)
    # Of parts of one rank diffusers finds the diagonal again, whatever part is zero.
    rank, width = max(one.shape[0] for one in downs), downs[0].shape[1]
    sizes = [given[part][1].shape[0] if part in given else part_rows(part, width) for part in parts]
    down = downs[0].new_zeros(rank * len(parts), width)
    up = ups[0].new_zeros(sum(sizes), rank * len(parts))
    row = 0
    for number, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        if part in given:
            one, other = given[part]
            column = rank * number
            down[column : column + one.shape[0]] = one
            up[row : row + size, column : column + one.shape[0]] = other
        row += size
    return down, up


def _split(parts: tuple[str, ...], sizes: list[int], down: torch.Tensor, up: torch.Tensor) -> dict[str, Factors]:
    """The inverse of `_joined`, parts of which have that many rows; those that are zero are left out where others are
    not.
    """
    if len(parts) == 1:
        return {parts[0]: (down, up)}
    ups = up.split(sizes)
    rank, rest = divmod(down.shape[0], len(parts))
    diagonal = not rest and all(
        not one[:, rank * other : rank * (other + 1)].any()
        for number, one in enumerate(ups)
        for other in range(len(parts))
        if other != number
    )
    if not diagonal:
        return {part: (down, one.contiguous()) for part, one in zip(parts, ups, strict=True)}
    found = {}
    for number, (part, one) in enumerate(zip(parts, ups, strict=True)):
        own, other = down[rank * number : rank * (number + 1)], one[:, rank * number : rank * (number + 1)]
        # Smaller ranks were filled up with zeros.
        kept = own.any(1) | other.any(0)
        if kept.any():
            found[part] = (own[kept].contiguous(), other[:, kept].contiguous())
    return found or {part: (down, one.contiguous()) for part, one in zip(parts, ups, strict=True)}
