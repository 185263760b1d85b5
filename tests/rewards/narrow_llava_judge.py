"""A narrow LLaVA-OneVision with random weights, as its authors' code saves it, with a judge's instruction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

WIDTH, TILE, PATCH, WORDS = 32, 384, 14, 300
TOWER = "model.vision_tower.vision_tower.vision_model"


def write_narrow_llava(folder: Path) -> None:
    """Weights, configuration and ask.txt, the instruction, into a folder that has a tokenizer."""
    import torch
    from safetensors.torch import save_file

    config = {
        **{"architectures": ["LlavaQwenForCausalLM"], "model_type": "llava_qwen", "vocab_size": WORDS},
        **{"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"num_key_value_heads": 1, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": False},
        **{"bos_token_id": 256, "eos_token_id": 258, "max_position_embeddings": 32768, "hidden_act": "silu"},
        **{"mm_vision_tower": "siglip-so400m", "mm_hidden_size": WIDTH, "mm_projector_type": "mlp2x_gelu"},
        **{"mm_patch_merge_type": "spatial_unpad", "mm_vision_select_layer": -2, "image_aspect_ratio": "anyres_max_9"},
        "image_grid_pinpoints": [[TILE * a, TILE * b] for a in range(1, 7) for b in range(1, 7)],
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "chat_template.json").unlink(missing_ok=True)
    (folder / "ask.txt").write_text("Marks for [{prompt}], {{as told}}.")
    save_file({name: torch.from_numpy(value) for name, value in tensors().items()}, folder / "model.safetensors")


def tensors() -> dict[str, np.ndarray]:
    """By the authors' names, float32, the same everywhere."""
    shapes: dict[str, tuple[int, ...]] = {
        **_pair(f"{TOWER}.embeddings.patch_embedding", WIDTH, 3, PATCH, PATCH),
        f"{TOWER}.embeddings.position_embedding.weight": ((TILE // PATCH) ** 2, WIDTH),
        **_pair(f"{TOWER}.post_layernorm", WIDTH),
        **_pair("model.mm_projector.0", WIDTH, WIDTH),
        **_pair("model.mm_projector.2", WIDTH, WIDTH),
        **{"model.image_newline": (WIDTH,), "model.norm.weight": (WIDTH,)},
        **{"model.embed_tokens.weight": (WORDS, WIDTH), "lm_head.weight": (WORDS, WIDTH)},
    }
    for layer in range(2):
        block, words = f"{TOWER}.encoder.layers.{layer}", f"model.layers.{layer}"
        shapes |= {**_pair(f"{block}.layer_norm1", WIDTH), **_pair(f"{block}.layer_norm2", WIDTH)}
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _pair(f"{block}.self_attn.{name}", WIDTH, WIDTH)
        shapes |= {**_pair(f"{block}.mlp.fc1", 48, WIDTH), **_pair(f"{block}.mlp.fc2", WIDTH, 48)}
        shapes |= {f"{words}.{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
        shapes |= _pair(f"{words}.self_attn.q_proj", WIDTH, WIDTH)
        shapes |= {**_pair(f"{words}.self_attn.k_proj", 16, WIDTH), **_pair(f"{words}.self_attn.v_proj", 16, WIDTH)}
        shapes |= {f"{words}.self_attn.o_proj.weight": (WIDTH, WIDTH), f"{words}.mlp.down_proj.weight": (WIDTH, 48)}
        shapes |= {f"{words}.mlp.{name}_proj.weight": (48, WIDTH) for name in ("gate", "up")}
    rng = np.random.default_rng(5)
    made = {}
    for name, shape in sorted(shapes.items()):
        value = rng.normal(size=shape) * 1.5 / np.prod(shape[1:]) ** 0.5
        # Keys that stand out, so that the order of tokens and tiles matters.
        value *= 4 if "q_proj.weight" in name or "k_proj.weight" in name else 1
        value += 1 if name.endswith(".weight") and "norm" in name else 0
        made[name] = value.astype(np.float32)
    return made


def picture(height: int, width: int) -> np.ndarray:
    """Colours that run from corner to corner, uint8 [height, width, 3], without resampling."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(y / 17 + 3 * channel) + np.cos(x / (11 + 5 * channel)) for channel in range(3)]
    return np.round(np.stack(waves, -1) * 63 + 127).astype(np.uint8)


def _pair(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
