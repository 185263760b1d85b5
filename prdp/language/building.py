"""From settings to assistants and pairs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prdp.language.settings import METRIC, AssistantConfig, WritingConfig, assistant_problems
from prdp.support.errors import ConfigError, StartError, start_up_checks
from prdp.support.targets import locate

if TYPE_CHECKING:
    from prdp.language.assistants import Assistant
    from prdp.language.calibrating import Metric
    from prdp.language.decoding import Decoding, Pair
    from prdp.language.models import LanguageModel
    from prdp.language.records import Record

_NAMED = ("path", "url", "model", "key_variable", "tokens_per_call", "extra", "dtype")
"""What a folder keeps of how an assistant is reached."""


def build_assistant(config: AssistantConfig, tokenizer: Any, batch_size: int, own_tokenizer: bool = False) -> Assistant:
    """The assistant of settings.

    Args:
        tokenizer: of the base.
        batch_size: records that a local model scores at a time.
        own_tokenizer: whether `tokenizer` is the local model's own, so that there is nothing to compare.

    Raises:
        ConfigError, StartError: by key; a local model with another tokenizer, with the first difference.
    """
    if problems := assistant_problems(config):
        raise ConfigError("\n".join(problems))
    if config.url:
        from prdp.language.endpoint_assistant import EndpointAssistant

        with start_up_checks("assistant"):
            return EndpointAssistant(
                config.url,
                tokenizer,
                config.model or None,
                config.key_variable,
                config.tokens_per_call,
                config.at_once,
                config.timeout_seconds,
                config.retries,
                config.backoff_seconds,
                config.extra,
            )
    from prdp.language.assistants import LocalAssistant
    from prdp.language.models import LanguageModel, folder_digest, length_limit, load_network, load_tokenizer
    from prdp.language.tokenizers import check_same

    if not own_tokenizer:
        check_same("the base", tokenizer, "the assistant", load_tokenizer("assistant.path", config.path))
    network = load_network("assistant.path", config.path, config.device, config.dtype)
    with start_up_checks(f"assistant.path={config.path}"):
        model = LanguageModel(network, len(tokenizer))
    name = Path(config.path).resolve().name
    return LocalAssistant(model, name, folder_digest(config.path), length_limit(network), batch_size)


def identity(config: AssistantConfig) -> dict[str, Any]:
    """How an assistant is reached, for a manifest; a key is not part of it."""
    told = {name: value for name, value in dataclasses.asdict(config).items() if name in _NAMED}
    return {**told, "path": str(Path(config.path).resolve()) if config.path else ""}


def assistant_of(given: AssistantConfig, kept: Mapping[str, Any]) -> AssistantConfig:
    """The assistant that is given, else the one that a folder tells.

    Raises:
        StartError: the folder tells none that can be understood.
    """
    if given.path or given.url:
        return given
    try:
        return dataclasses.replace(given, **{name: kept[name] for name in _NAMED})
    except (KeyError, TypeError) as error:
        raise StartError(f"pair: what it tells of its assistant is damaged: {error}") from None


def pair_of(base: LanguageModel, assistant: Assistant, tokenizer: Any) -> Pair:
    """A pair; a text ends with the token of the tokenizer, or of the base's own settings."""
    from prdp.language.decoding import Pair
    from prdp.language.models import length_limit

    ends = getattr(getattr(base.network, "generation_config", None), "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return Pair(base, assistant, tokenizer, frozenset({tokenizer.eos_token_id, *ends}), length_limit(base.network))


def decoding_of(config: WritingConfig) -> Decoding:
    """As decoding takes it."""
    from prdp.language.decoding import Decoding

    return Decoding(**dataclasses.asdict(config))


def build_metric(name: str) -> Metric:
    """`exact`, or a function of the user's.

    Raises:
        ConfigError: there is no such function.
    """
    from prdp.language.calibrating import exact

    if name == METRIC:
        return exact
    found: Any = locate("metric", name)
    if not callable(found):
        raise ConfigError(f"metric={name}: is no function")

    def checked(texts: Sequence[str], answers: Sequence[str]) -> Sequence[float]:
        scores = [float(one) for one in found(texts, answers)]
        if len(scores) != len(texts):
            raise StartError(f"metric={name}: gave {len(scores)} numbers for {len(texts)} texts")
        if strange := [one for one in scores if not math.isfinite(one)]:
            raise StartError(f"metric={name}: gave {strange[0]} for a text; it must give finite numbers")
        return scores

    return checked


def check_server(assistant: Assistant, tokenizer: Any, record: Record) -> None:
    """Refuse a server that does not tell what is needed, by a record with an answer; nothing of a local model.

    Raises:
        StartError: see `EndpointAssistant.check`.
    """
    from prdp.language.endpoint_assistant import EndpointAssistant
    from prdp.language.records import encode

    if isinstance(assistant, EndpointAssistant):
        assistant.check(encode(tokenizer, record))
