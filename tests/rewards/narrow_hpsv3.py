"""HPSv3 with narrow random weights in files of its authors' layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

WIDTH, EYES, LAYERS = 32, 32, 2
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
IMAGE, REWARD = 256 + SPECIAL.index("<|image_pad|>"), 256 + len(SPECIAL)
"""Ids of tokens; bytes are the first 256, and the reward's token comes after those that the folder knows."""
INSTRUCTION = "Judge a picture of {text_prompt}. {{A brace}}\nIts mark: <|Reward|>\nThat is all.\n"
TEMPLATE = (
    "{{ '<|im_start|>system\\nBe fair.<|im_end|>\\n' }}{% for one in messages %}{{ '<|im_start|>' + one.role + '\\n' }}"
    "{% for part in one.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_narrow_hpsv3(folder: Path) -> None:
    """`qwen2_vl` (configuration, tokenizer, chat template), HPSv3.safetensors and instruction.txt."""
    import torch
    from safetensors.torch import save_file

    base = folder / "qwen2_vl"
    base.mkdir()
    config = {
        **{"model_type": "qwen2_vl", "vocab_size": 300, "hidden_size": WIDTH, "intermediate_size": 48},
        **{"num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6},
        **{"rope_theta": 1000000.0, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}},
        **{"image_token_id": IMAGE, "tie_word_embeddings": False, "bos_token_id": 256, "eos_token_id": 258},
        "vision_config": {"depth": LAYERS, "embed_dim": EYES, "num_heads": 2, "hidden_size": WIDTH},
    }
    (base / "config.json").write_text(json.dumps(config))
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(hidden))]
    (base / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    (base / "merges.txt").write_text("#version: 0.2\n")
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False) | {"special": True}
    added = {str(256 + number): {"content": token, **flags} for number, token in enumerate(SPECIAL)}
    settings = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "pad_token": SPECIAL[0]}
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    (base / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (folder / "instruction.txt").write_text(INSTRUCTION)
    save_file({name: torch.from_numpy(value) for name, value in tensors().items()}, folder / "HPSv3.safetensors")


def tensors() -> dict[str, np.ndarray]:
    """A checkpoint by the names of transformers 4.45, float32, the same everywhere."""
    shapes: dict[str, tuple[int, ...]] = {
        "visual.patch_embed.proj.weight": (EYES, 3, 2, 14, 14),
        **_pair("visual.merger.ln_q", EYES),
        **_pair("visual.merger.mlp.0", 4 * EYES, 4 * EYES),
        **_pair("visual.merger.mlp.2", WIDTH, 4 * EYES),
        "model.embed_tokens.weight": (REWARD + 1, WIDTH),
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (REWARD + 1, WIDTH),
        **_pair("rm_head.0", 1024, WIDTH),
        **_pair("rm_head.3", 16, 1024),
        **_pair("rm_head.5", 2, 16),
    }
    for layer in range(LAYERS):
        block, words = f"visual.blocks.{layer}", f"model.layers.{layer}"
        shapes |= {**_pair(f"{block}.norm1", EYES), **_pair(f"{block}.norm2", EYES)}
        shapes |= {**_pair(f"{block}.attn.qkv", 3 * EYES, EYES), **_pair(f"{block}.attn.proj", EYES, EYES)}
        shapes |= {**_pair(f"{block}.mlp.fc1", 4 * EYES, EYES), **_pair(f"{block}.mlp.fc2", EYES, 4 * EYES)}
        shapes |= {f"{words}.{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
        shapes |= _pair(f"{words}.self_attn.q_proj", WIDTH, WIDTH)
        shapes |= _pair(f"{words}.self_attn.k_proj", WIDTH // 2, WIDTH)
        shapes |= _pair(f"{words}.self_attn.v_proj", WIDTH // 2, WIDTH)
        shapes |= {f"{words}.self_attn.o_proj.weight": (WIDTH, WIDTH), f"{words}.mlp.down_proj.weight": (WIDTH, 48)}
        shapes |= {f"{words}.mlp.{name}_proj.weight": (48, WIDTH) for name in ("gate", "up")}
    rng = np.random.default_rng(3)
    made = {name: rng.normal(size=shape) / np.prod(shape[1:]) ** 0.5 for name, shape in sorted(shapes.items())}
    made["model.embed_tokens.weight"] *= WIDTH**0.5
    for name in made:
        # Keys that stand out, so that the order of tokens and patches matters.
        made[name] *= 4 if "q_proj" in name or "k_proj" in name or "qkv" in name else 1
        made[name] += 1 if name.endswith(".weight") and ("norm" in name or "ln_q" in name) else 0
    return {name: value.astype(np.float32) for name, value in made.items()}


def _pair(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
