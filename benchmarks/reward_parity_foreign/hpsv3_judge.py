"""The judge HPSv3, by the authors' inferencer."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path

import torch
from random_weights import randomise

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
