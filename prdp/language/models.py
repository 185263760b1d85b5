"""Causal language models of transformers, read from disk, and one with a row for deferral beside its head."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prdp.config import ClusterConfig
from prdp.configuration.preconditions import device_problems
from prdp.rewards.weight_files import digest
from prdp.support.errors import StartError

DTYPES = ("float32", "bfloat16", "float16")
_DIGESTED = (".safetensors", ".bin", "config.json")


@dataclass(frozen=True)
class Output:
    """What a model says behind every token that it reads.

    Attributes:
        logits: [b, n, V] over the vocabulary of the tokenizer; what a head is padded with is cut off.
        deferral: d, float32 [b, n]; None of a model without the row.
        cache: keys and values of all that was read; None where none is kept.
    """

    logits: Tensor
    deferral: Tensor | None
    cache: Any


class LanguageModel(nn.Module):
    """A causal language model.

    Args:
        network: of transformers.
        vocabulary: tokens of the tokenizer.

    Raises:
        ValueError: it has no head, or one with fewer rows than tokens.
    """

    def __init__(self, network: Any, vocabulary: int) -> None:
        super().__init__()
        head = network.get_output_embeddings()
        if head is None or getattr(head, "weight", None) is None:
            raise ValueError(f"{type(network).__name__} has no head over a vocabulary")
        if head.weight.shape[0] < vocabulary:
            raise ValueError(f"its head has {head.weight.shape[0]} rows, the tokenizer {vocabulary} tokens")
        self.network = network
        self.vocabulary = vocabulary
        taken = inspect.signature(network.forward).parameters
        self._takes_positions = "position_ids" in taken
        self._takes_kept = "logits_to_keep" in taken

    @property
    def device(self) -> torch.device:
        """Where tokens have to be."""
        return next(self.network.parameters()).device

    def forward(
        self, ids: Tensor, mask: Tensor, cache: Any = None, keeps_cache: bool = False, last: bool = False
    ) -> Output:
        """Read tokens.

        Args:
            ids: int64 [b, n].
            mask: int64 [b, m + n], 0 where a column is padding, with the m columns that the cache holds.
            cache: of an earlier output; it is changed.
            keeps_cache: whether one is wanted.
            last: whether only the last column's output is wanted: [b, 1, ...].
        """
        arguments: dict[str, Any] = {"attention_mask": mask, "use_cache": keeps_cache}
        if cache is not None:
            arguments["past_key_values"] = cache
        if self._takes_positions:
            arguments["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if last and self._takes_kept:
            arguments["logits_to_keep"] = 1
        output, deferral = self._run(ids, arguments)
        logits = output.logits[..., : self.vocabulary]
        if last:
            logits, deferral = logits[:, -1:], None if deferral is None else deferral[:, -1:]
        return Output(logits, deferral, getattr(output, "past_key_values", None) if keeps_cache else None)

    def _run(self, ids: Tensor, arguments: dict[str, Any]) -> tuple[Any, Tensor | None]:
        return self.network(input_ids=ids, **arguments), None


class DeferringModel(LanguageModel):
    """A causal language model whose head has one row more: d = <w, h> + b, with h what the head reads.

    The row is no token: the vocabulary's softmax does not have it. It starts as the mean of the head's rows, b as 0.

    Args:
        network, vocabulary: as of `LanguageModel`.
        row: w [H] and b [], where they are known.

    Raises:
        ValueError: as of `LanguageModel`, or a row of another width.
    """

    def __init__(self, network: Any, vocabulary: int, row: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__(network, vocabulary)
        head = network.get_output_embeddings().weight
        mean = head[:vocabulary].detach().float().mean(0)
        weight, bias = row if row is not None else (mean, torch.zeros(()))
        if weight.shape != mean.shape:
            raise ValueError(f"the deferral row has {weight.numel()} numbers, the base's head reads {mean.numel()}")
        self.row = nn.Linear(mean.numel(), 1, device=mean.device, dtype=torch.float32)
        with torch.no_grad():
            self.row.weight.copy_(weight[None])
            self.row.bias.copy_(bias.reshape(1))

    def _run(self, ids: Tensor, arguments: dict[str, Any]) -> tuple[Any, Tensor | None]:
        read: list[Tensor] = []
        hook = self.network.get_output_embeddings().register_forward_pre_hook(lambda _, given: read.append(given[0]))
        try:
            output = self.network(input_ids=ids, **arguments)
        finally:
            hook.remove()
        return output, self.row(read[-1].float())[..., 0]


def load_tokenizer(key: str, path: str) -> Any:
    """The tokenizer in a folder; no code of the folder is run.

    Raises:
        StartError: by key: there is none, or it has no token that ends texts.
    """
    from transformers import AutoTokenizer

    _check_folder(key, path)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise StartError(f"{key}={path}: holds no tokenizer, such as tokenizer.json: {_first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise StartError(f"{key}={path}: its tokenizer has no token that ends texts")
    return tokenizer


def load_network(key: str, path: str, device: str, dtype: str) -> Any:
    """The causal language model in a folder; no code of the folder is run.

    Args:
        device: auto takes the GPU that there is.

    Raises:
        StartError: by key.
    """
    from transformers import AutoModelForCausalLM

    _check_folder(key, path)
    try:
        network: Any = AutoModelForCausalLM.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, dtype=getattr(torch, dtype)
        )
    except (OSError, ValueError) as error:
        raise StartError(f"{key}={path}: holds no causal language model: {_first_line(error)}") from error
    return network.eval().to(chosen_device(device))


def chosen_device(device: str) -> str:
    """The device of a setting: auto is the GPU that there is, else the CPU.

    Raises:
        StartError: it is not there.
    """
    if problems := device_problems("device", device, ClusterConfig(kind="inline"), 0.0, True):
        raise StartError("\n".join(problems))
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def folder_digest(path: str) -> str:
    """Of the weights and the configuration in a model's folder; reads them once whole."""
    files = sorted(file for file in Path(path).iterdir() if file.name.endswith(_DIGESTED))
    return digest(files)


def length_limit(network: Any) -> int | None:
    """Tokens that a model reads at most; None where its configuration tells none."""
    return _limit_in(network.config)


def length_limit_of(key: str, path: str) -> int | None:
    """The same of the model in a folder, whose weights are not read.

    Raises:
        StartError: by key.
    """
    from transformers import AutoConfig

    _check_folder(key, path)
    try:
        return _limit_in(AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False))
    except (OSError, ValueError) as error:
        raise StartError(f"{key}={path}: holds no causal language model: {_first_line(error)}") from error


def _limit_in(config: Any) -> int | None:
    limit = getattr(config, "max_position_embeddings", None)
    return None if limit is None else int(limit)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _check_folder(key: str, path: str) -> None:
    if not Path(path).is_dir():
        raise StartError(f"{key}={path}: there is no such folder")
