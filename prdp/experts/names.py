"""How layers of LoRAs are called, in one scheme: diffusers' component, its path, and peft's names of the factors."""

from __future__ import annotations

from collections.abc import Sequence

from prdp.support.errors import StartError

NETWORKS = ("unet", "transformer")
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
FACTOR = rf"((?:{'|'.join((*NETWORKS, *TEXT_ENCODERS))})\..+)\.lora_([AB])\.weight"
"""A tensor's name; its groups are the layer with its component, and the factor."""
_UNET = ("down_blocks.", "mid_block.", "up_blocks.", "conv_in.", "conv_out.", "time_embedding.", "add_embedding.")
_TEXT = ("text_model.", "encoder.layers.", "encoder.block.")
_CLIP = ("text_encoder.encoder.layers.", "text_encoder_2.encoder.layers.")


def diffusers_name(name: str) -> str:
    """A name of a tensor of any version of diffusers in the scheme of today.

    CLIP's layers keep `text_model.` before them, which diffusers takes off again where its text encoder has none.
    """
    from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
    from diffusers.utils.state_dict_utils import StateDictType

    if name.endswith(".alpha"):
        return name
    if ".lora_A." in name or ".lora_B." in name:
        plain = name
    elif is_of_text_encoder(name):
        [plain] = convert_state_dict_to_peft({name: None}, original_type=StateDictType.DIFFUSERS_OLD)
    else:
        # One by one: for a whole file diffusers takes the scheme of its first name for that of all.
        [plain] = convert_unet_state_dict_to_peft({name: None})
    component, _, rest = plain.partition(".")
    return f"{component}.text_model.{rest}" if plain.startswith(_CLIP) else plain


def is_of_text_encoder(name: str) -> bool:
    """Whether a layer, or a tensor, is of a text encoder."""
    return name.partition(".")[0] in TEXT_ENCODERS


def peft_component(where: str, names: Sequence[str]) -> str:
    """The component that a file of PEFT is of, which it does not tell: its layers have names of UNets or others.

    Raises:
        StartError: they are of a text encoder, and which one nothing tells.
    """
    if any(name.startswith(_TEXT) for name in names):
        raise StartError(
            f"{where}: {next(name for name in names if name.startswith(_TEXT))}: is of a text encoder; a file of PEFT "
            "does not tell which, so give it in the format of diffusers or kohya"
        )
    return "unet" if any(name.startswith(_UNET) for name in names) else "transformer"
