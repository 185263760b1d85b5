"""The foreign half of reward_parity.py: writes random checkpoints and scores with the authors' own code.

    python reward_parity_foreign.py CASE prepare|score FOLDER [--small]

Runs in an environment without prdp. Its libraries are old; what is done to make them start is said beside it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.machinery
import importlib.util
import json
import os
import shutil
import sys
import types
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import torch

NARROW = {"embed_dim": 128, "vision": (3, 128, 32), "text": (128, 2, 3)}
"""Of --small: vision layers, width and patch; text width, heads and layers. Heads are 64 wide."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=[*CASES])
    parser.add_argument("step", choices=["prepare", "score"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    define_vision_operators()
    torch.manual_seed(0)
    prepare, score = CASES[options.case]
    if options.step == "prepare":
        prepare(options.folder, options.small)
        return
    rows = json.loads((options.folder / "inputs.json").read_text())
    with torch.no_grad():
        judge, scores = score(options.folder, options.small, rows)
    answer = {"judge": judge, "scores": torch.tensor(scores, dtype=torch.float64).tolist()}
    (options.folder / "answer.json").write_text(json.dumps(answer))


def define_vision_operators() -> None:
    """torchvision's wheels want CUDA; beside a CPU build of torch its operators must exist by name to be imported."""
    if torch.cuda.is_available():
        return
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def randomise(model: Any) -> None:
    """Weights that neither vanish nor explode, biases and gains included, so that no part is missed unnoticed."""
    for name, value in model.named_parameters():
        if value.ndim >= 2:
            torch.nn.init.normal_(value, std=value[0].numel() ** -0.5 if "embed" not in name else 0.1)
        elif "logit_scale" not in name:
            torch.nn.init.normal_(value, mean=1.0 if is_gain(model, name) else 0.0, std=0.1)
        else:
            torch.nn.init.constant_(value, 4.60517)


def is_gain(model: Any, name: str) -> bool:
    owner, _, leaf = name.rpartition(".")
    return leaf == "weight" and "Norm" in type(model.get_submodule(owner)).__name__


def hpsv2_model(small: bool) -> Any:
    """The package's own model and preprocessing, without asking the hub for weights it would then overwrite."""
    lend_vocabulary()
    from hpsv2.src.open_clip import create_model_and_transforms, factory

    if small:
        layers, width, patch = NARROW["vision"]
        text_width, heads, text_layers = NARROW["text"]
        factory._MODEL_CONFIGS["ViT-H-14"] = {
            "embed_dim": NARROW["embed_dim"],
            "vision_cfg": {"image_size": 224, "layers": layers, "width": width, "patch_size": patch},
            "text_cfg": {
                "context_length": 77,
                "vocab_size": 49408,
                "width": text_width,
                "heads": heads,
                "layers": text_layers,
            },
        }
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
    layers, width, patch = NARROW["vision"]
    text_width, heads, text_layers = NARROW["text"]
    open_clip.factory._MODEL_CONFIGS["narrow"] = {
        "embed_dim": NARROW["embed_dim"],
        "vision_cfg": {"image_size": 224, "layers": layers, "width": width, "patch_size": patch},
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": text_width,
            "heads": heads,
            "layers": text_layers,
        },
    }
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


HPSV3_TOKENS = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
HPSV3_TEMPLATE = (
    "{{ '<|im_start|>system\\nBe fair.<|im_end|>\\n' }}{% for one in messages %}{{ '<|im_start|>' + one.role + '\\n' }}"
    "{% for part in one.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""A template of the same form as Qwen2-VL's; both sides read it from the folder."""


def hpsv3_package() -> Path:
    """Make hpsv3 importable without what it needs for training and for video alone; its folder."""
    from transformers import Qwen2VLForConditionalGeneration  # noqa: F401, before anything stands in for anything

    vision = ("torchvision", "torchvision.io", "torchvision.transforms", "torchvision.transforms.functional")
    plots = ("matplotlib", "matplotlib.pyplot", "matplotlib.patches", "torch.utils.tensorboard")
    for name in (*vision, *plots, "datasets", "fire", "pandas", "peft", "trl"):
        module = types.ModuleType(name)
        module.__path__ = []
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__getattr__ = lambda wanted: None if wanted.startswith("__") else type(wanted, (), {})
        sys.modules[name] = module
        owner, _, leaf = name.rpartition(".")
        if owner:
            setattr(sys.modules[owner], leaf, module)
    sys.modules["trl"].get_quantization_config = lambda _: None
    return Path(importlib.util.find_spec("hpsv3").submodule_search_locations[0])


def prepare_hpsv3(folder: Path, small: bool) -> None:
    """Qwen2-VL's files, its attention heads of the true width, and HPSv3.safetensors as the authors save it."""
    import ast

    from omegaconf import OmegaConf
    from safetensors.torch import save_file
    from tokenizers import ByteLevelBPETokenizer
    from transformers import (
        Qwen2TokenizerFast,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
    )

    package, base = hpsv3_package(), folder / "qwen2_vl"
    base.mkdir()
    source = (package / "dataset" / "data_collator_qwen.py").read_text()
    trained = ByteLevelBPETokenizer()
    texts = [one.value for one in ast.walk(ast.parse(source)) if isinstance(one, ast.Constant)]
    trained.train_from_iterator([text for text in texts if isinstance(text, str)], vocab_size=1500, min_frequency=1)
    trained.save_model(str(base))
    special = [f"<|{name}|>" for name in HPSV3_TOKENS]
    tokenizer = Qwen2TokenizerFast(str(base / "vocab.json"), str(base / "merges.txt"), pad_token=special[0])
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer, chat_template=HPSV3_TEMPLATE).save_pretrained(base)
    image, video = tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])
    config = Qwen2VLConfig(
        vocab_size=len(tokenizer) + 400,
        hidden_size=256 if small else 3584,
        intermediate_size=512 if small else 18944,
        num_hidden_layers=3,
        num_attention_heads=2 if small else 28,
        num_key_value_heads=1 if small else 4,
        rms_norm_eps=1e-6,
        rope_theta=1000000.0,
        rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
        vision_config={"depth": 3, "embed_dim": 160 if small else 1280, "num_heads": 2 if small else 16}
        | {"hidden_size": 256 if small else 3584},
        image_token_id=image,
        video_token_id=video,
    )
    Qwen2VLForConditionalGeneration(config).save_pretrained(base)
    settings = OmegaConf.load(package / "config" / "HPSv3_7B.yaml")
    settings.model_name_or_path = str(base)
    OmegaConf.save(settings, folder / "hpsv3.yaml")

    from hpsv3 import inference

    kinds = (inference.DataConfig, inference.TrainingConfig, inference.ModelConfig, inference.PEFTLoraConfig)
    (_, training, network, lora), _ = inference.parse_args_with_yaml(kinds, str(folder / "hpsv3.yaml"), is_train=False)
    (folder / "instruction.txt").write_text(inference.INSTRUCTION + inference.prompt_with_special_token)
    model, _, _ = inference.create_model_and_processor(network, lora, training)
    randomise(model)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "HPSv3.safetensors")


def score_hpsv3(folder: Path, small: bool, rows: list[dict[str, str]]) -> tuple[str, list[list[float]]]:
    """The authors' inferencer by their own configuration, cast to float32 when all is loaded."""
    return hpsv3_scores(folder, rows, torch.float32)


def score_hpsv3_bfloat16(folder: Path, small: bool, rows: list[dict[str, str]]) -> tuple[str, list[list[float]]]:
    return hpsv3_scores(folder, rows, torch.bfloat16)


def hpsv3_scores(folder: Path, rows: list[dict[str, str]], dtype: torch.dtype) -> tuple[str, list[list[float]]]:
    """Both outputs; images and prompts of one size in one batch, so that rows are padded."""
    hpsv3_package()
    from hpsv3.inference import HPSv3RewardInferencer

    inferencer = HPSv3RewardInferencer(str(folder / "hpsv3.yaml"), str(folder / "HPSv3.safetensors"), device="cpu")
    head = inferencer.model.rm_head
    inferencer.model.to(dtype)
    head.float()
    # The head takes float32; on a GPU the authors' autocast sees to it.
    head.register_forward_pre_hook(lambda _, states: (states[0].float(),))
    scores = []
    for start in range(0, len(rows), 6):
        part = rows[start : start + 6]
        scores += inferencer.reward([row["image"] for row in part], [row["prompt"] for row in part]).tolist()
    return "hpsv3.HPSv3RewardInferencer.reward", scores


CASES = {
    "hpsv2": (prepare_hpsv2, score_hpsv2),
    "open_clip": (prepare_open_clip, score_open_clip),
    "clipscore": (prepare_openai, score_clipscore),
    "pickscore": (prepare_pickscore, score_pickscore),
    "aesthetic": (prepare_aesthetic, score_aesthetic),
    "imagereward": (prepare_imagereward, score_imagereward),
    "hpsv3": (prepare_hpsv3, score_hpsv3),
    "hpsv3_bfloat16": (prepare_hpsv3, score_hpsv3_bfloat16),
}

if __name__ == "__main__":
    sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).parent.resolve()]
    main()
