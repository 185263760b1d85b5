"""Where layers of CLIP's text encoders are: some versions of transformers put text_model before their paths."""

from __future__ import annotations

import functools
from typing import Any


def text_path(encoder: Any, path: str) -> str:
    """A layer's path in an encoder, of one in a file: some versions of transformers put text_model before CLIP's."""
    return path if hasattr(encoder, "text_model") else path.removeprefix("text_model.")


def file_path(encoder: Any, path: str) -> str:
    """The inverse of `text_path`, as files have it in every version."""
    return path if hasattr(encoder, "text_model") else f"text_model.{path}"


def last_layer(component: str, encoder: Any) -> str:
    """With what the names of a text encoder's last layer begin in `NetworkWithEncoders`."""
    return f"{component}.{text_path(encoder, f'text_model.encoder.layers.{encoder.config.num_hidden_layers - 1}')}."


def peft_path(component: str, path: str, with_unet: bool) -> str:
    """A layer's path of a file as PEFT has to find it in the pipeline's text encoder, which `text_path` tells of.

    Args:
        component: of the text encoder.
        with_unet: whether its pipeline has a UNet: the first encoder has no projection then.
    """
    flat = with_unet and component == "text_encoder" and _is_flat()
    return path.removeprefix("text_model.") if flat else path


@functools.cache
def _is_flat() -> bool:
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        return not hasattr(CLIPTextModel(CLIPTextConfig(num_hidden_layers=1)), "text_model")
