"""Fixtures: small random checkpoints in the formats of their authors, and tokenizers to go with them."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """uint8 [4, 40, 56, 3]: bands of colour with noise."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (4, 5, 7, 3)).repeat(8, axis=1).repeat(8, axis=2)
    return (coarse + rng.integers(-30, 31, coarse.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def clip_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP's tokenizer with letters for a vocabulary: 'a' is 0, 'a' at a word's end 26."""
    folder = tmp_path_factory.mktemp("clip_tokenizer")
    words = [*string.ascii_lowercase, *(letter + "</w>" for letter in string.ascii_lowercase)]
    words += ["re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    return folder


@pytest.fixture(scope="session")
def bert_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT's tokenizer with letters and a few words, as vocab.txt."""
    folder = tmp_path_factory.mktemp("bert_tokenizer")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
    words += [*("##" + letter for letter in string.ascii_lowercase), "red", "cat", "yes", "no", "two", "?"]
    (folder / "vocab.txt").write_text("\n".join(words))
    return folder


@pytest.fixture(scope="session")
def open_clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HPS_v2_compressed.pt of a small random model."""
    import torch
    from reference_models import open_clip_tensors

    file = tmp_path_factory.mktemp("hpsv2") / "HPS_v2_compressed.pt"
    torch.save({"state_dict": open_clip_tensors()}, file)
    return file


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory, clip_tokenizer: Path) -> Path:
    """A small random CLIP model in transformers format, with its tokenizer."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 56, "max_position_embeddings": 16, "bos_token_id": 54, "eos_token_id": 55, "pad_token_id": 55}
    vision = {"image_size": 28, "patch_size": 14}
    model = CLIPModel(CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=24))
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.2)
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    for file in clip_tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(scope="session")
def head_tensors() -> dict[str, Any]:
    """The aesthetic predictor's head over features of width 24."""
    import torch

    torch.manual_seed(1)
    widths = (24, 1024, 128, 64, 16, 1)
    tensors = {}
    for place, into, out in zip((0, 2, 4, 6, 7), widths[:-1], widths[1:], strict=True):
        tensors[f"layers.{place}.weight"] = torch.randn(out, into) / into**0.5
        tensors[f"layers.{place}.bias"] = torch.randn(out)
    return tensors


@pytest.fixture(scope="session")
def blip_folder(tmp_path_factory: pytest.TempPathFactory, bert_tokenizer: Path) -> Path:
    """BLIP for questions in transformers format, with its tokenizer."""
    import torch
    from transformers import BlipConfig, BlipForQuestionAnswering

    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 63, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(text_config=tower | text, vision_config=tower | {"image_size": 32, "patch_size": 16})
    model = BlipForQuestionAnswering(config)
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.3)
    folder = tmp_path_factory.mktemp("blip")
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_bytes((bert_tokenizer / "vocab.txt").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    preparation = {"image_processor_type": "BlipImageProcessor", "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps({"processor_class": "BlipProcessor", **preparation}))
    return folder
