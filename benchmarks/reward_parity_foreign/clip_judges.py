"""Judges of the CLIP family: hpsv2, open_clip, openai/CLIP and PickScore."""

from __future__ import annotations

import importlib.util
import shutil
import types
from pathlib import Path
from typing import Any

import torch
from random_weights import NARROW, randomise


def hpsv2_model(small: bool) -> Any:
    """The package's own model and preprocessing, without asking the hub for weights it would then overwrite."""
    lend_vocabulary()
    from hpsv2.src.open_clip import create_model_and_transforms, factory

    if small:
        factory._MODEL_CONFIGS["ViT-H-14"] = narrow_open_clip()
    return create_model_and_transforms(
        "ViT-H-14",
        None,
        precision="amp",
        device="cpu",
        jit=False,
        light_augmentation=True,
        aug_cfg={},
        output_dict=True,
        with_score_predictor=False,
        with_region_predictor=False,
    )


def narrow_open_clip() -> dict[str, Any]:
    """A configuration of open_clip's for --small."""
    layers, width, patch = NARROW["vision"]
    text_width, heads, text_layers = NARROW["text"]
    text = {"context_length": 77, "vocab_size": 49408, "width": text_width, "heads": heads, "layers": text_layers}
    vision = {"image_size": 224, "layers": layers, "width": width, "patch_size": patch}
    return {"embed_dim": NARROW["embed_dim"], "vision_cfg": vision, "text_cfg": text}


def lend_vocabulary() -> None:
    """hpsv2's wheel lacks its vocabulary; open_clip's is the same file."""
    package = Path(importlib.util.find_spec("hpsv2").submodule_search_locations[0])
    target = package / "src" / "open_clip" / "bpe_simple_vocab_16e6.txt.gz"
    if not target.exists():
        shutil.copy(Path(importlib.util.find_spec("open_clip").submodule_search_locations[0]) / target.name, target)


def prepare_hpsv2(folder: Path, small: bool) -> None:
    model, _, _ = hpsv2_model(small)
    randomise(model)
    torch.save({"state_dict": model.state_dict()}, folder / "HPS_v2_compressed.pt")


def score_hpsv2(folder: Path, small: bool, rows: list[dict[str, str]]) -> tuple[str, list[float]]:
    model, _, preprocess = hpsv2_model(small)
    from hpsv2 import img_score

    img_score.model_dict.update(model=model, preprocess_val=preprocess)
    path = folder / "HPS_v2_compressed.pt"
    # The package reads the checkpoint at every call; reading it once changes no score.
    content = torch.load(path)
    img_score.torch = types.SimpleNamespace(**{**vars(torch), "load": lambda *_, **__: content})
    scores = []
    for row in rows:
        scores += img_score.score(row["image"], row["prompt"], cp=str(path), hps_version="v2.0")
    return "hpsv2.img_score.score", scores


def prepare_open_clip(folder: Path, small: bool) -> None:
    import open_clip

    name = open_clip_name(small)
    model = open_clip.create_model(name)
    randomise(model)
    torch.save(model.state_dict(), folder / "open_clip.pt")


def open_clip_name(small: bool) -> str:
    import open_clip

    if not small:
        return "ViT-H-14"
    open_clip.factory._MODEL_CONFIGS["narrow"] = narrow_open_clip()
    return "narrow"


def score_open_clip(folder: Path, small: bool, rows: list[dict[str, str]]) -> tuple[str, list[float]]:
    """Features of open_clip and its tokenizer, on the images as hpsv2 prepares them."""
    lend_vocabulary()
    import open_clip
    from hpsv2.src.open_clip.transform import image_transform
    from PIL import Image

    name = open_clip_name(small)
    model = open_clip.create_model(name, pretrained=str(folder / "open_clip.pt")).eval()
    tokenizer = open_clip.get_tokenizer("ViT-H-14")
    preprocess = image_transform(224, is_train=False, resize_longest_max=True)
    scores = []
    for row in rows:
        image = model.encode_image(preprocess(Image.open(row["image"]))[None], normalize=True)
        text = model.encode_text(tokenizer([row["prompt"]]), normalize=True)
        scores.append((image * text).sum())
    return f"open_clip {open_clip.__version__}", scores


def openai_model(folder: Path, small: bool, write: bool) -> tuple[Any, Any]:
    """openai/CLIP's model and preprocessing; ViT-L/14 unless small."""
    import clip
    from clip.model import CLIP, build_model

    if write:
        layers, width, patch = NARROW["vision"] if small else (24, 1024, 14)
        text_width, heads, text_layers = NARROW["text"] if small else (768, 12, 12)
        embedding = 768
        model = CLIP(embedding, 224, layers, width, patch, 77, 49408, text_width, heads, text_layers)
        randomise(model)
        # build_model rounds matrices to float16, as which OpenAI publishes them.
        torch.save(build_model(model.state_dict()).state_dict(), folder / "openai.pt")
    tensors = torch.load(folder / "openai.pt")
    return build_model(dict(tensors)).float().eval(), clip.clip._transform(224)


def prepare_openai(folder: Path, small: bool) -> None:
    openai_model(folder, small, write=True)


def score_clipscore(folder: Path, small: bool, rows: list[dict[str, str]]) -> tuple[str, list[float]]:
    """openai/CLIP as its README uses it."""
    import clip
    from PIL import Image

    model, preprocess = openai_model(folder, small, write=False)
    scores = []
    for row in rows:
        image = model.encode_image(preprocess(Image.open(row["image"]))[None])
        text = model.encode_text(clip.tokenize(row["prompt"], truncate=True))
        scores.append(torch.nn.functional.cosine_similarity(image, text).item())
    return "clip (openai-clip)", scores


def prepare_pickscore(folder: Path, small: bool) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    layers, width, patch = NARROW["vision"] if small else (32, 1280, 14)
    text_width, heads, text_layers = NARROW["text"] if small else (1024, 16, 24)
    config = CLIPConfig(
        projection_dim=NARROW["embed_dim"] if small else 1024,
        text_config={
            "hidden_size": text_width,
            "intermediate_size": 4 * text_width,
            "num_hidden_layers": text_layers,
            "num_attention_heads": heads,
            "hidden_act": "gelu",
        },
        vision_config={
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "patch_size": patch,
            "num_attention_heads": 2 if small else 16,
            "image_size": 224,
            "hidden_act": "gelu",
        },
    )
    model = CLIPModel(config)
    randomise(model)
    model.save_pretrained(folder / "pickscore", safe_serialization=not small)
    processor = CLIPProcessor(CLIPImageProcessor(), CLIPTokenizer.from_pretrained(folder / "clip_tokenizer"))
    processor.save_pretrained(folder / "pickscore")


def score_pickscore(folder: Path, small: bool, rows: list[dict[str, str]]) -> tuple[str, list[float]]:
    """The lines of the model card; its logits are divided by the logit scale."""
    import transformers
    from PIL import Image
    from transformers import AutoModel, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder / "pickscore")
    model = AutoModel.from_pretrained(folder / "pickscore").eval()
    settings = {"padding": True, "truncation": True, "max_length": 77, "return_tensors": "pt"}
    scores = []
    for row in rows:
        image = model.get_image_features(**processor(images=[Image.open(row["image"])], **settings))
        text = model.get_text_features(**processor(text=row["prompt"], **settings))
        image = image / image.norm(dim=-1, keepdim=True)
        text = text / text.norm(dim=-1, keepdim=True)
        logits = model.logit_scale.exp() * (text @ image.T)[0]
        scores.append(logits.item() / model.logit_scale.exp().item())
    return f"model card, transformers {transformers.__version__}", scores
