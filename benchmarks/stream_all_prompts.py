"""Train on every prompt of a file once, on the smallest random Stable Diffusion, and prove it from the run's log.

    python benchmarks/stream_all_prompts.py train.jsonl --output-dir runs/all_prompts [--option columns=[source,prompt]]

The model has the layout of Stable Diffusion and next to no weights: 8x8 pixels, two denoising steps. The run goes
through the whole machinery: text encoder, sampler, reward, learner, checkpoints. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from prdp.configuration.typed import typed
from prdp.prompts import build_prompts
from prdp.prompts.any_file import parse_options
from prdp.prompts.usage import check_usage
from prdp.train import main as train
from prdp.worlds.shapes.tiny_pipeline import build_scheduler, build_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the prompts' reader")
    parser.add_argument("--prompts-per-epoch", type=int, default=2048)
    parser.add_argument("--cluster", default="inline", choices=("inline", "ray"))
    options = parser.parse_args()
    model = options.output_dir / "model"
    if not (model / "model_index.json").exists():
        save_smallest_pipeline(model)
    section = {
        "_target_": "prdp.prompts.any_file.open_prompts",
        "path": str(options.prompts),
        **parse_options(options.option),
    }
    rows = len(build_prompts("prompts.train", section))
    epochs = -(-rows // options.prompts_per_epoch)
    start = time.monotonic()
    train(
        typed(
            {
                "epochs": epochs,
                "prompts_per_epoch": options.prompts_per_epoch,
                "images_per_prompt": 2,
                "output_dir": str(options.output_dir / "run"),
                "model": {"path": str(model)},
                "sampler": {"steps": 2, "guidance_scale": 1.0, "microbatch": 256, "prompts_per_chunk": 128},
                "reward": {"_target_": "prdp.rewards.redness.Redness"},
                "prompts": {
                    "train": section,
                    "heldout": {"_target_": "prdp.worlds.shapes.prompts.ShapesPrompts", "size": 8},
                },
                "learner": {"lora_rank": 2, "microbatch": 512},
                "cluster": {"kind": options.cluster},
                "evaluation": {"every": 0, "final_prompts": 8, "prompts": 8},
                "tracking": {"report": False},
                "checkpoint": {"every": 5, "resume": "auto"},
            }
        )
    )
    usage = check_usage(options.output_dir / "run")
    print(
        f"{rows:,} prompts, {usage.epochs} epochs of {options.prompts_per_epoch:,}, {usage.drawn:,} draws, "
        f"{(time.monotonic() - start) / 60:.1f} min since the last start\n"
        f"whole passes: {usage.whole_passes}; least and most draws of a prompt: {usage.counts.min()}, "
        f"{usage.counts.max()}; faults: {'; '.join(usage.faults) or 'none'}"
    )


def save_smallest_pipeline(folder: Path) -> None:
    """Random weights of seed 0 in the layout of Stable Diffusion: 4x4 latents that are decoded to 8x8 pixels."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tokenizer, width = build_tokenizer(), 16
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=8,
            mid_block_add_attention=False,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=width,
                projection_dim=width,
                num_hidden_layers=1,
                num_attention_heads=1,
                max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        ),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=4,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            block_out_channels=(width,),
            layers_per_block=1,
            cross_attention_dim=width,
            attention_head_dim=1,
            norm_num_groups=4,
        ),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


if __name__ == "__main__":
    main()
