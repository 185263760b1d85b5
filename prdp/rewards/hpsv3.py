"""HPSv3 (Ma et al., 2025): human preference by Qwen2-VL, read off a token that asks for it.

The checkpoint of github.com/MizzenAI/HPSv3 is read into transformers' Qwen2-VL. The authors' `hpsv3` package, which
wants transformers 4.45, is needed for the text of its instruction only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from prdp.rewards.batching import Batches, choose_device
from prdp.rewards.clip_model import check_settings, distinct, weights_version
from prdp.rewards.hpsv3_instruction import IMAGE_TOKEN, REWARD_TOKEN, check_words, find_instruction
from prdp.rewards.hpsv3_network import HPSv3Network
from prdp.rewards.pixels import check_batch, qwen2_vl_patches, qwen2_vl_size
from prdp.rewards.prompt_tokens import load_tokenizer
from prdp.rewards.weight_files import find_file, find_folder, read_json, read_tensors
from prdp.types import Float64, UInt8

if TYPE_CHECKING:
    import torch

FILE = "HPSv3.safetensors"
BASE_FILES = (("tokenizer*.json", "config.json", "chat_template.*", "vocab.json", "merges.txt"),)
AREA = 256 * 28 * 28
"""Pixels of an image as the network sees it."""
CODE_VERSION = "1"


class HPSv3:
    """Preference of an image for a prompt, mostly 0 to 12, higher is better.

    The network gives a mean, which is the reward, and the logarithm of a standard deviation, both on one scale; the
    standard deviation is the sub-score `sigma`.

    Args:
        path: the Qwen2-VL that was tuned, Qwen2-VL-7B-Instruct: a folder in transformers format, or a hub id.
            Its config.json and its tokenizer are needed, not its weights.
        weights: the checkpoint HPSv3.safetensors, a folder that holds it, or the hub repository.
        instruction: a text file, see `hpsv3_instruction`; None for the text in the authors' package.
        device, batch_size, memory_mib: see `prdp.rewards.clip_model.ClipScorer`.
        dtype: of the network; the authors' is bfloat16. The head is float32.

    Raises:
        ValueError: what `check` raises.
    """

    name = "hpsv3"
    sub_score_names: ClassVar[tuple[str, ...]] = ("sigma",)

    def __init__(
        self,
        path: str = "Qwen/Qwen2-VL-7B-Instruct",
        weights: str = "MizzenAI/HPSv3",
        instruction: str | None = None,
        device: str = "auto",
        dtype: str = "bfloat16",
        batch_size: int | None = None,
        memory_mib: float | None = None,
    ) -> None:
        import torch

        check_settings(device, dtype, batch_size, memory_mib)
        text = find_instruction(instruction)
        folder = find_folder("path", path, BASE_FILES)
        file = find_file("weights", weights, FILE)
        assert text is not None and folder is not None and file is not None
        self._network, self._tokens = _parts(folder, file, text, choose_device(self.name, device), dtype)
        said = hashlib.sha256(self._tokens.example.encode()).hexdigest()[:8]
        self.version = f"{weights_version([file], dtype, code=CODE_VERSION)}-{said}"
        config = self._network.config.text_config
        # Of a layer: its input, a normalised copy, queries, keys, values, attention, and three wide ones of its MLP.
        values = AREA / 28**2 * (3 * config.intermediate_size + 8 * config.hidden_size)
        # The instruction has about twice as many tokens as the image.
        mib = 3 * values * getattr(torch, dtype).itemsize / 2**20
        self._batches = Batches(self.name, batch_size, memory_mib, image_mib=mib)

    @classmethod
    def check(
        cls,
        path: str = "Qwen/Qwen2-VL-7B-Instruct",
        weights: str = "MizzenAI/HPSv3",
        instruction: str | None = None,
        **settings: Any,
    ) -> None:
        """Find the instruction and the files, and compare names and shapes of the tensors, without loading them.

        Raises:
            ValueError: naming the argument, the file and what is wrong with it.
        """
        check_settings(**settings)
        text = find_instruction(instruction)
        folder = find_folder("path", path, BASE_FILES, fetch=False)
        file = find_file("weights", weights, FILE, fetch=False)
        if folder is not None:
            _configuration(folder)
        if text is not None and folder is not None and file is not None:
            _parts(folder, file, text)

    @staticmethod
    def check_prompt(prompt: str, metadata: Mapping[str, Any]) -> None:
        """Raises ValueError for a prompt with one of the instruction's special tokens in it."""
        check_words(prompt)

    @staticmethod
    def check_size(height: int, width: int) -> None:
        """Raises ValueError for a picture that is more than 200 times as long as it is wide."""
        qwen2_vl_size(height, width, AREA)

    def score(
        self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> tuple[Float64, dict[str, Float64]]:
        """Means and standard deviations, float64 [B] each, of uint8 images [B, H, W, 3] of any size."""
        check_batch(images, prompts, metadata)
        texts, which = distinct(prompts)
        height, width = qwen2_vl_size(images.shape[1], images.shape[2], AREA)
        ids, last = self._tokens(texts, image_tokens=(height // 28) * (width // 28))
        ids, last = ids[which], last[which]
        table = self._batches.map(lambda part: self._score_batch(images[part], ids[part], last[part]), len(images))
        return table[:, 0], {"sigma": np.exp(table[:, 1])}

    def _score_batch(self, images: UInt8, ids: torch.Tensor, last: torch.Tensor) -> Float64:
        import torch

        with torch.inference_mode():
            patches, grid = qwen2_vl_patches(images, AREA)
            return self._network(ids, last, patches, grid).double().cpu().numpy()


class InstructionTokens:
    """Turns prompts into the tokens of a conversation that shows an image and asks for a score.

    A row ends with the token that the score is read off: attention is causal, so nothing behind it could play a part.

    Args:
        key: of the folder, for messages.
        tokenizer: of transformers; it learns the reward's token if it lacks it.
        template: the chat template; None for the tokenizer's own.
        instruction: see `hpsv3_instruction.find_instruction`.
        image_token: id of the token that stands for a part of the image.
        vocabulary: number of token embeddings of the network.

    Attributes:
        example: what is said for the prompt 'x'.

    Raises:
        ValueError: a tokenizer that is not the network's, or a template that shows no image.
    """

    def __init__(
        self, key: str, tokenizer: Any, template: str | None, instruction: str, image_token: int, vocabulary: int
    ) -> None:
        tokenizer.add_tokens([REWARD_TOKEN], special_tokens=True)
        self._tokenizer, self._instruction = tokenizer, instruction
        self._template = template or tokenizer.chat_template
        self._image, self._reward = (tokenizer.convert_tokens_to_ids(token) for token in (IMAGE_TOKEN, REWARD_TOKEN))
        if len(tokenizer) != vocabulary:
            raise ValueError(
                f"{key}: the tokenizer has {len(tokenizer)} tokens, {REWARD_TOKEN} among them, but the weights have "
                f"{vocabulary} token embeddings: it is another model's"
            )
        if self._image != image_token:
            raise ValueError(
                f"{key}: {IMAGE_TOKEN} is token {self._image} of the tokenizer, but config.json says "
                f"image_token_id={image_token}"
            )
        if not self._template:
            raise ValueError(f"{key}: has no chat template, neither in chat_template.json nor with the tokenizer")
        self.example = self._said("x")
        if self.example.count(IMAGE_TOKEN) != 1:
            raise ValueError(
                f"{key}: the chat template shows {self.example.count(IMAGE_TOKEN)} images by {IMAGE_TOKEN}, must show 1"
            )

    def __call__(self, prompts: Sequence[str], image_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids, int64 [B, longest], padded on the right; and the places, int64 [B], of the rewards' tokens.

        Raises:
            ValueError: what `check_words` raises.
        """
        import torch

        for prompt in prompts:
            check_words(prompt)
        rows = []
        for said in self._tokenizer([self._said(prompt) for prompt in prompts], verbose=False)["input_ids"]:
            image, reward = said.index(self._image), said.index(self._reward)
            rows.append([*said[:image], *[self._image] * image_tokens, *said[image + 1 : reward + 1]])
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self._reward] * (longest - len(row)) for row in rows])
        return ids, torch.tensor([len(row) - 1 for row in rows])

    def _said(self, prompt: str) -> str:
        text = self._instruction.format(text_prompt=prompt)
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        return str(
            self._tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, add_generation_prompt=True
            )
        )


def _parts(
    folder: Path, file: Path, instruction: str, device: str | None = None, dtype: str = "bfloat16"
) -> tuple[HPSv3Network, InstructionTokens]:
    """The network and what makes its tokens; without a device the network has no weights, only their shapes."""
    configuration = _configuration(folder)
    tensors = read_tensors("weights", file, inside=("model",), shapes_only=device is None)
    network = HPSv3Network(f"weights ({file})", configuration, tensors, device or "cpu", dtype)
    tokenizer = load_tokenizer("path", str(folder), "Qwen2Tokenizer", network.vocabulary)
    template = None
    if (folder / "chat_template.json").is_file():
        template = read_json("path", folder / "chat_template.json").get("chat_template")
    key = f"path ({folder})"
    image_token = int(network.config.image_token_id)
    return network, InstructionTokens(key, tokenizer, template, instruction, image_token, network.vocabulary)


def _configuration(folder: Path) -> dict[str, Any]:
    configuration = read_json("path", folder / "config.json")
    if configuration.get("model_type") != "qwen2_vl":
        raise ValueError(
            f"path: {folder / 'config.json'} is of a '{configuration.get('model_type')}' model, expected 'qwen2_vl'"
        )
    return configuration
