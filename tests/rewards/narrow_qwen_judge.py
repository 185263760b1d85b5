"""A narrow Qwen2.5-VL with random weights in transformers' format, as UnifiedReward's checkpoints are."""

from __future__ import annotations

import json
from pathlib import Path

from narrow_hpsv3 import IMAGE, SPECIAL


def write_narrow_judge(folder: Path) -> None:
    """Weights, configurations and ask.txt, the instruction, into a folder that has tokenizer and chat template.

    The vision tower has a layer that looks at windows, and one that looks at the whole, as released.
    """
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        **{"vocab_size": 256 + len(SPECIAL), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 256, "eos_token_id": 258},
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    }
    vision = {
        **{"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32},
        **{"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]},
    }
    ids = {"image_token_id": IMAGE, "vision_start_token_id": 259, "vision_end_token_id": 260, "video_token_id": 256}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))
        for name, value in model.named_parameters():
            value.mul_(1.0 if "norm" in name else 6.0)  # so that answers differ by picture and prompt
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 3136, "max_pixels": 12845056}))
    (folder / "ask.txt").write_text("Marks for [{prompt}], {{as told}}.")
