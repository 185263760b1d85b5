"""A trained pair, ready to write: models, assistant, and the threshold that was found for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prdp import calibration
from prdp.diffusion.libraries import quiet
from prdp.language.assistants import Assistant
from prdp.language.building import assistant_of, build_assistant, pair_of
from prdp.language.decoding import Pair
from prdp.language.folder import BASELINES, THRESHOLD, CollmFolder
from prdp.language.models import LanguageModel, load_network, load_tokenizer
from prdp.language.settings import AssistantConfig, WritingConfig
from prdp.support.errors import StartError
from prdp.support.json_lines import load_json


class PairSettings(Protocol):
    """What opening a pair takes of settings."""

    pair: str
    assistant: AssistantConfig
    writing: WritingConfig
    device: str
    dtype: str


@dataclass(frozen=True)
class Opened:
    """A pair that was opened.

    Attributes:
        settings: it was opened with.
        folder: of it.
        assistant: that is asked.
        tokenizer: of both models.
        pairs: variant -> base and assistant.
    """

    settings: PairSettings
    folder: CollmFolder
    assistant: Assistant
    tokenizer: Any
    pairs: dict[str, Pair]

    def base(self) -> Pair:
        """The base as it came, with the assistant."""
        network = load_network("pair.base", self.folder.base, self.settings.device, self.settings.dtype)
        return pair_of(LanguageModel(network, len(self.tokenizer)), self.assistant, self.tokenizer)

    def digests(self, prompts: str) -> dict[str, str]:
        """What a threshold holds for, by the parts of `prdp.calibration`.

        Args:
            prompts: digest of the validation data.
        """
        how = self.settings.writing
        sampler = f"temperature {how.temperature:g}, top_p {how.top_p:g}, compose {str(how.compose).lower()}"
        return {
            "model": self.folder.digest("trained"),
            "scorer": self.assistant.digest,
            "sampler": sampler,
            "prompts": prompts,
        }

    def baselines(self) -> dict[str, float]:
        """Thresholds of what a pair is compared with, by name; empty where there is no calibration.

        Raises:
            StartError: the file is damaged.
        """
        return self._calibrated()[1]

    def eta(self, variant: str, given: str = "auto") -> float:
        """The threshold of a variant.

        Args:
            given: a number, or auto for what calibration found.

        Raises:
            StartError: none was found, or one of another model, assistant or way to draw tokens.
        """
        if given != "auto":
            return float(given)
        prompts, thresholds = self._calibrated()
        if variant == "trained":
            return calibration.load(self.folder.folder / THRESHOLD, self.digests(prompts)).value
        if variant not in thresholds:
            raise StartError(f"eta=auto: {self.folder.folder} has no threshold of {variant}; calibrate it first")
        return thresholds[variant]

    def _calibrated(self) -> tuple[str, dict[str, float]]:
        """Digest of the validation data, and thresholds of the baselines."""
        file = self.folder.folder / BASELINES
        if not file.is_file():
            return "", {}
        try:
            content = load_json(file.read_bytes())
            return str(content["prompts"]), {str(name): float(one) for name, one in content["thresholds"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StartError(f"pair: {file} is damaged: {error}") from None


def open_pair(settings: PairSettings, variants: Sequence[str]) -> Opened:
    """Open a folder of `prdp collm train`.

    Args:
        variants: that are wanted; the first must be there.

    Raises:
        ConfigError, StartError: by key.
    """
    quiet()
    folder = CollmFolder.open(Path(settings.pair).expanduser())
    there = folder.variants()
    if variants[0] not in there:
        raise StartError(f"variant={variants[0]}: {folder.folder} has {', '.join(there) or 'none'}")
    tokenizer = load_tokenizer("pair", str(folder.tokenizer_folder))
    chosen = assistant_of(settings.assistant, folder.assistant)
    assistant = build_assistant(chosen, tokenizer, settings.writing.batch_size)
    if assistant.digest != folder.assistant.get("digest"):
        print(f"{folder.folder} has learned when to ask another assistant than {assistant.name}")
    pairs = {
        name: pair_of(folder.load(name, settings.device, settings.dtype), assistant, tokenizer)
        for name in variants
        if name in there
    }
    return Opened(settings, folder, assistant, tokenizer, pairs)
