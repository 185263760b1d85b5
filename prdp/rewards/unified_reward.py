"""UnifiedReward (Wang et al., 2025): a language model that looks at an image and writes its marks in words.

The checkpoints of github.com/CodeGoat24/UnifiedReward that were tuned from Qwen2.5-VL, and the first ones, tuned from
LLaVA-OneVision, on transformers' classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

import numpy as np

from prdp.rewards.batching import Batches, choose_device
from prdp.rewards.clip_model import check_settings, weights_version
from prdp.rewards.hpsv3_instruction import IMAGE_TOKEN
from prdp.rewards.judge_answers import criteria_scores
from prdp.rewards.llava_onevision import IMAGE, LlavaOnevision, check_llava, is_llava
from prdp.rewards.pixels import check_batch, qwen2_vl_patches, qwen2_vl_size
from prdp.rewards.transformers_models import load_pretrained
from prdp.rewards.weight_files import find_file, find_folder, model_files, read_json
from prdp.types import Float64, UInt8

if TYPE_CHECKING:
    import torch

FILES = (("*.safetensors", "*.json", "*.txt", "*.jinja"),)
ARCHITECTURES = {
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
}
"""model_type of a folder -> class of transformers."""
LEAST, MOST = 4 * 28**2, 16384 * 28**2
"""Pixels of an image as the network sees it, where the folder does not say; of the authors' own preparation."""
LOW, HIGH = 1.0, 5.0
CODE_VERSION = "1"


class UnifiedReward:
    """Mean of the marks of an image for a prompt, 1 to 5, higher is better; marks are sub-scores.

    The model writes an answer, the likeliest word by word, and the marks are read from its lines, such as
    'Alignment Score (1-5): 3.2' of version 2, or 'Final Score: 4' of version 1.

    Args:
        path: the model, a folder in transformers format or a hub id, such as CodeGoat24/UnifiedReward-qwen-7b.
        instruction: a text file of what is asked, with {prompt} where the caption goes; other braces are doubled. The
            authors' repository has the text that a version was tuned with.
        criteria: how the lines with marks begin.
        max_new_tokens: of an answer; one that is cut off before its last mark cannot be read.
        unreadable: mark of an image whose answer cannot be read; None ends the run by the name of its prompt.
        device, batch_size, memory_mib: see `prdp.rewards.clip_model.ClipScorer`.
        dtype: of the network; the checkpoints are bfloat16.

    Raises:
        ValueError: what `check` raises.
    """

    name = "unified_reward"

    def __init__(
        self,
        path: str,
        instruction: str,
        criteria: Sequence[str] = ("alignment", "coherence", "style"),
        max_new_tokens: int = 512,
        unreadable: float | None = None,
        device: str = "auto",
        dtype: str = "bfloat16",
        batch_size: int | None = None,
        memory_mib: float | None = None,
    ) -> None:
        import torch
        import transformers

        check_settings(device, dtype, batch_size, memory_mib)
        _check_answers(criteria, max_new_tokens, unreadable)
        self._instruction = _instruction(instruction)
        folder = find_folder("path", path, FILES)
        assert folder is not None
        self._device = choose_device(self.name, device)
        kind, self._llava, self._template = _kind(folder), None, None
        if kind is None:
            self._llava = LlavaOnevision(f"path={path}", folder, self._device, dtype)
            self._network, self._tokenizer = self._llava.network, self._llava.tokenizer
        else:
            architecture = getattr(transformers, ARCHITECTURES[kind])
            self._network, self._tokenizer = load_pretrained(
                f"path={path}", folder, architecture, transformers.AutoTokenizer, self._device, dtype
            )
            self._template = _template(folder, self._tokenizer)
            self._image = int(self._network.config.image_token_id)
            if self._said("x").count(IMAGE_TOKEN) != 1:
                raise ValueError(f"path={path}: the chat template must show one image by {IMAGE_TOKEN}")
            self._least, self._most = pixel_bounds(folder)
        self._criteria, self._unreadable = tuple(criteria), unreadable
        self._max_new_tokens = max_new_tokens
        self.sub_score_names = self._criteria
        asked = [self._instruction, *self._criteria, str(max_new_tokens), str(unreadable), str(self._template)]
        said = hashlib.sha256("\n".join(asked).encode()).hexdigest()[:8]
        self.version = f"{weights_version(model_files('path', folder), dtype, code=CODE_VERSION)}-{said}"
        text = self._network.config.get_text_config()
        # Of a token: keys and values of all layers, and what one layer passes through.
        token = 2 * text.num_hidden_layers * text.hidden_size + 3 * text.intermediate_size + 8 * text.hidden_size
        image = 324 if self._llava is None else 3699  # of 512 x 512
        tokens = 1024 + max_new_tokens + image  # instruction, answer, and image
        mib = tokens * token * getattr(torch, dtype).itemsize / 2**20
        self._batches = Batches(self.name, batch_size, memory_mib, image_mib=mib)

    @classmethod
    def check(
        cls,
        path: str,
        instruction: str,
        criteria: Sequence[str] = ("alignment", "coherence", "style"),
        max_new_tokens: int = 512,
        unreadable: float | None = None,
        **settings: Any,
    ) -> None:
        """Find the files and read the configuration and the instruction, without loading weights.

        Raises:
            ValueError: naming the argument, the file and what is wrong with it.
        """
        check_settings(**settings)
        _check_answers(criteria, max_new_tokens, unreadable)
        _instruction(instruction)
        folder = find_folder("path", path, FILES, fetch=False)
        if folder is not None:
            if _kind(folder) is None:
                check_llava(f"path={path}", folder)
                return
            model_files(f"path={path}", folder)
            pixel_bounds(folder)

    @staticmethod
    def check_prompt(prompt: str, metadata: Mapping[str, Any]) -> None:
        """Raises ValueError for a prompt with the token of the image in it."""
        for token in (IMAGE_TOKEN, IMAGE):
            if token in prompt:
                raise ValueError(f"prompt {prompt!r} has {token} in it, which unified_reward must find in one place")

    @staticmethod
    def check_size(height: int, width: int) -> None:
        """Raises ValueError for a picture that is more than 200 times as long as it is wide."""
        qwen2_vl_size(height, width, LEAST, most=MOST)

    def score(
        self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> tuple[Float64, dict[str, Float64]]:
        """Means and marks, float64 [B] each, of uint8 images [B, H, W, 3] of any size.

        Raises:
            ValueError: an answer that cannot be read; names the prompt and tells it.
        """
        check_batch(images, prompts, metadata)
        table = self._batches.map(
            lambda part: np.array(
                [
                    self._marks(answer, prompt)
                    for answer, prompt in zip(self.answers(images[part], prompts[part]), prompts[part], strict=True)
                ],
                np.float64,
            ),
            len(images),
        )
        return table.mean(axis=1), {name: table[:, number] for number, name in enumerate(self._criteria)}

    def answers(self, images: UInt8, prompts: Sequence[str]) -> list[str]:
        """What the model writes about each of uint8 images [B, H, W, 3]."""
        import torch

        if self._llava is not None:
            texts = [self._instruction.format(prompt=prompt) for prompt in prompts]
            return self._llava.answers(images, texts, self._max_new_tokens)
        patches, grid = qwen2_vl_patches(images, self._least, most=self._most)
        ids, mask = self._tokens(prompts, grid[0] * grid[1] // 4)
        with torch.inference_mode():
            written = self._network.generate(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                pixel_values=patches.to(self._device, self._network.dtype),
                image_grid_thw=torch.tensor([[1, *grid]] * len(images), device=self._device),
                mm_token_type_ids=(ids == self._image).int().to(self._device),
                max_new_tokens=self._max_new_tokens,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
            )
        decoded: list[str] = self._tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)
        return decoded

    def _tokens(self, prompts: Sequence[str], image_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, int64 [B, longest], padded on the left, where an answer does not follow."""
        import torch

        texts = [self._said(prompt).replace(IMAGE_TOKEN, IMAGE_TOKEN * image_tokens) for prompt in prompts]
        rows = self._tokenizer(texts, verbose=False)["input_ids"]
        longest, padding = max(map(len, rows)), self._tokenizer.pad_token_id or 0
        ids = torch.tensor([[padding] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return ids, mask

    def _said(self, prompt: str) -> str:
        text = self._instruction.format(prompt=prompt)
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        return str(
            self._tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, add_generation_prompt=True
            )
        )

    def _marks(self, answer: str, prompt: str) -> list[float]:
        try:
            marks = criteria_scores(answer, self._criteria)
            for mark in marks:
                if not LOW <= mark <= HIGH:
                    raise ValueError(f"has a mark of {mark:g}, must be from {LOW:g} to {HIGH:g}")
        except ValueError as error:
            if self._unreadable is None:
                raise ValueError(
                    f"prompt {prompt!r}: the answer {error}; it is {answer[-300:]!r}. reward.unreadable=1 would give "
                    "such images the lowest mark"
                ) from None
            return [self._unreadable] * len(self._criteria)
        return marks


def pixel_bounds(folder: Path) -> tuple[int, int]:
    """Least and most pixels of an image by a folder's preprocessor_config.json, or the authors' own.

    Raises:
        ValueError: a file that tells none that could be.
    """
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return LEAST, MOST
    given = read_json("path", file)
    least, most = given.get("min_pixels") or LEAST, given.get("max_pixels") or MOST
    if not (isinstance(least, int) and isinstance(most, int) and 0 < least <= most):
        raise ValueError(f"path: {file}: min_pixels={least}, max_pixels={most}: must be whole numbers, in this order")
    # The authors resize by bounds of their own first.
    return max(least, LEAST), min(most, MOST)


def _kind(folder: Path) -> str | None:
    """The model_type of a folder in transformers' format; None for one of LLaVA's authors."""
    configuration = read_json("path", folder / "config.json")
    kind = configuration.get("model_type")
    if is_llava(configuration):
        return None
    if kind not in ARCHITECTURES:
        raise ValueError(
            f"path: {folder / 'config.json'} is of a '{kind}' model, expected one of {', '.join(ARCHITECTURES)}, or "
            "LLaVA-OneVision as its authors save it: what UnifiedReward was tuned from; others can be asked by "
            "reward=vlm_judge"
        )
    return str(kind)


def _template(folder: Path, tokenizer: Any) -> str | None:
    """The chat template of a folder; None for the tokenizer's own."""
    if (folder / "chat_template.json").is_file():
        return read_json("path", folder / "chat_template.json").get("chat_template")
    if not tokenizer.chat_template:
        raise ValueError(f"path: {folder} has no chat template, neither in chat_template.json nor with the tokenizer")
    return None


def _instruction(path: str) -> str:
    file = find_file("instruction", path)
    assert file is not None
    key = f"instruction={path}"
    try:
        text = file.read_text(encoding="utf-8")
        places = {place for _, place, _, _ in Formatter().parse(text) if place is not None}
    except (OSError, ValueError) as error:
        raise ValueError(f"{key}: cannot be read as a format string: {error}; braces of the text are doubled") from None
    if places != {"prompt"}:
        has = ", ".join(f"{{{place}}}" for place in sorted(places)) or "none"
        raise ValueError(f"{key}: has the places {has}, must have {{prompt}} alone; other braces are doubled")
    for token in (IMAGE_TOKEN, IMAGE):
        if token in text:
            raise ValueError(f"{key}: must not have {token} in it, which the chat template puts in")
    return text


def _check_answers(criteria: Sequence[str], max_new_tokens: int, unreadable: float | None) -> None:
    if isinstance(criteria, str) or not criteria or len(set(criteria)) < len(criteria):
        raise ValueError(f"criteria={criteria!r}: must be a list of different names")
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: must be a whole number of at least 1")
    if unreadable is not None and not LOW <= unreadable <= HIGH:
        raise ValueError(f"unreadable={unreadable}: must be null or from {LOW:g} to {HIGH:g}")
