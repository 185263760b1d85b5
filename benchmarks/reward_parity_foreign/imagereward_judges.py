"""Judges that image-reward ships: ImageReward and the aesthetic predictor."""

from __future__ import annotations

import importlib
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import torch
from clip_judges import openai_model, prepare_openai
from random_weights import randomise


def prepare_aesthetic(folder: Path, small: bool) -> None:
    prepare_openai(folder, small)
    head = aesthetic_module().MLP(768)
    randomise(head)
    torch.save(head.state_dict(), folder / "sac+logos+ava1-l14-linearMSE.pth")


def score_aesthetic(folder: Path, small: bool, rows: list[dict[str, str]]) -> tuple[str, list[float]]:
    """The predictor as image-reward ships it, given the models that it would download."""
    module = aesthetic_module()
    predictor = module.AestheticScore.__new__(module.AestheticScore)
    torch.nn.Module.__init__(predictor)
    predictor.device = "cpu"
    predictor.clip_model, predictor.preprocess = openai_model(folder, small, write=False)
    predictor.mlp = module.MLP(768)
    predictor.mlp.load_state_dict(torch.load(folder / "sac+logos+ava1-l14-linearMSE.pth"))
    predictor.eval()
    return "ImageReward.AestheticScore", [predictor.score(row["prompt"], row["image"]) for row in rows]


def aesthetic_module() -> Any:
    skip_training_code()
    return importlib.import_module("ImageReward.models.AestheticScore")


def prepare_imagereward(folder: Path, small: bool) -> None:
    words = ["[PAD]", *(f"[unused{number}]" for number in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(33, 127)]
    words += letters + [f"##{letter}" for letter in letters]
    words += ["photo", "cat", "cube", "##s", "red", "astro", "##naut", "horse", "moon", "on", "the", "an", "##ing"]
    words += [f"[filler{number}]" for number in range(30522 - len(words))]
    tokenizer = folder / "bert-base-uncased"
    tokenizer.mkdir()
    (tokenizer / "vocab.txt").write_text("\n".join(words))
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "model_max_length": 512}))
    config = {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 768,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "model_type": "bert",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": 30524,
        "encoder_width": 768,
        "add_cross_attention": True,
    }
    (folder / "med_config.json").write_text(json.dumps(config))
    model = imagereward_class(folder)(str(folder / "med_config.json"), "cpu")
    randomise(model)
    torch.save(model.state_dict(), folder / "ImageReward.pt")


def score_imagereward(folder: Path, small: bool, rows: list[dict[str, str]]) -> tuple[str, list[float]]:
    model = imagereward_class(folder)(str(folder / "med_config.json"), "cpu")
    model.load_state_dict(torch.load(folder / "ImageReward.pt"), strict=True)
    model.eval()
    return "ImageReward.score", [model.score(row["prompt"], row["image"]) for row in rows]


def imagereward_class(folder: Path) -> Any:
    """The package asks for the tokenizer 'bert-base-uncased': here that is a folder of this name."""
    os.chdir(folder)
    skip_training_code()
    from ImageReward.ImageReward import ImageReward

    return ImageReward


def skip_training_code() -> None:
    """ImageReward imports its fine-tuning of diffusion models, and so an old diffusers, which scoring does not need."""
    sys.modules["ImageReward.ReFL"] = types.ModuleType("ImageReward.ReFL")
