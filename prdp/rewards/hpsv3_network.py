"""HPSv3's network: Qwen2-VL without its language head, and a head of two outputs, from the authors' checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prdp.rewards.weight_files import Tensors, bind

if TYPE_CHECKING:
    import torch

HEAD_WIDTHS = (1024, 16, 2)
_WORDS = "model.embed_tokens.weight"
_PARTS = ("visual.", "model.", "rm_head.")
_UNUSED = ("lm_head.",)
"""Predicts words, which nothing here asks for."""


class HPSv3Network:
    """Mean and logarithm of the standard deviation of an image's preference.

    Args:
        key: of the configuration and the file, for messages.
        configuration: content of the config.json of the Qwen2-VL that was tuned.
        tensors: of the checkpoint, by the names of transformers 4.45; on the meta device to check them alone.
        device, dtype: of the network; its head is float32.

    Attributes:
        config: transformers' Qwen2VLConfig.
        vocabulary: number of token embeddings.

    Raises:
        ValueError: naming tensors that do not fit, or a configuration of another model.
    """

    def __init__(
        self, key: str, configuration: Mapping[str, Any], tensors: Tensors, device: str = "cpu", dtype: str = "bfloat16"
    ) -> None:
        import torch
        from transformers import Qwen2VLModel

        if missing := [name for name in (_WORDS, "rm_head.5.weight") if name not in tensors]:
            raise ValueError(
                f"{key}: there is no {missing[0]}, so this is no HPSv3 checkpoint; its first tensors are "
                f"{', '.join(list(tensors)[:3])}"
            )
        parts = _split(key, tensors)
        self.vocabulary = len(tensors[_WORDS])
        self.config = _config(key, configuration, self.vocabulary)
        with torch.device("meta"):
            self._network = Qwen2VLModel(self.config)
            self._head = _head(self.config.text_config.hidden_size)
        bind(f"{key}, visual.*", self._network.visual, parts["visual."])
        bind(f"{key}, model.*", self._network.language_model, parts["model."])
        bind(f"{key}, rm_head.*", self._head, parts["rm_head."])
        if not tensors[_WORDS].is_meta:
            _rotate_as_trained(self._network)
            self._network.to(device, getattr(torch, dtype)).eval().requires_grad_(False)
            self._head.to(device, torch.float32).eval().requires_grad_(False)

    def __call__(
        self, ids: torch.Tensor, last: torch.Tensor, patches: torch.Tensor, grid: tuple[int, int]
    ) -> torch.Tensor:
        """Outputs, float32 [B, 2], read off one token of each row.

        Attention is causal, so what follows that token, such as padding, plays no part and needs no mask.

        Args:
            ids: of tokens, int64 [B, L].
            last: place of the token that is read, int64 [B].
            patches: see `prdp.rewards.pixels.qwen2_vl_patches`; B images of one size.
            grid: patches below each other and beside each other in an image.
        """
        import torch

        device, rows = next(self._network.parameters()).device, len(ids)
        # Tokens are numbered one by one: Qwen2-VL's own numbers, by row and column of the image, are made by
        # transformers outside of the network, where the authors' code never passes.
        places = torch.arange(ids.shape[1], device=device).expand(rows, -1)
        states = self._network(
            input_ids=ids.to(device),
            position_ids=places,
            pixel_values=patches.to(device),
            image_grid_thw=torch.tensor([[1, *grid]] * rows, device=device),
            use_cache=False,
        ).last_hidden_state
        return self._head(states[torch.arange(rows, device=device), last.to(device)].float())


def _split(key: str, tensors: Tensors) -> dict[str, Tensors]:
    parts: dict[str, Tensors] = {prefix: {} for prefix in _PARTS}
    strange = []
    for name, value in tensors.items():
        prefix = next((prefix for prefix in _PARTS if name.startswith(prefix)), None)
        if prefix is not None:
            parts[prefix][name.removeprefix(prefix)] = value
        elif not name.startswith(_UNUSED):
            strange.append(name)
    if strange:
        raise ValueError(f"{key}: {', '.join(strange[:4])} belong to no part of HPSv3")
    return parts


def _config(key: str, configuration: Mapping[str, Any], vocabulary: int) -> Any:
    from transformers import Qwen2VLConfig

    try:
        config = Qwen2VLConfig.from_dict(dict(configuration))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{key}: config.json cannot be used: {error}") from error
    # The authors add a token and cut off the rows that belong to none.
    config.text_config.vocab_size = vocabulary
    return config


def _head(width: int) -> torch.nn.Module:
    from torch.nn import Dropout, Linear, ReLU, Sequential

    first, second, outputs = HEAD_WIDTHS
    return Sequential(Linear(width, first), ReLU(), Dropout(), Linear(first, second), ReLU(), Linear(second, outputs))


def _rotate_as_trained(network: Any) -> None:
    """Give the rotary embeddings, which no checkpoint holds, the frequencies of the training.

    The authors cast the network with everything in it to bfloat16, and so rounded them. Far into a text this turns
    keys by other angles than exact frequencies would, and the weights were tuned to these.
    """
    for owner, name in ((network.language_model, "rotary_emb"), (network.visual, "rotary_pos_emb")):
        kind = type(getattr(owner, name))
        try:
            rotary = kind(owner.config)
        except TypeError as error:
            raise ValueError(f"reward 'hpsv3': this transformers makes {kind.__name__} otherwise than 5.23") from error
        rotary.inv_freq = rotary.inv_freq.bfloat16().float()
        setattr(owner, name, rotary)
