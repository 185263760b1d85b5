"""ImageReward at its real size as the estimator of a cascade: what scoring takes on this machine.

    python benchmarks/imagereward_cascade.py FOLDER [--prompts 8]

Weights are random, names and shapes those of ImageReward.pt (BLIP's ViT-L/16 of 224 pixels, BERT base that attends to
it, the head). `prdp calibrate` then routes the embedded Stable Diffusion by it, and `prdp evaluate` draws the cascade.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from prdp.cli import main as prdp
from prdp.rewards.imagereward import FILE

_WORDS, _TEXT, _VISION, _LAYERS = 30_524, 768, 1024, 12
_PATCH, _SIZE, _BLOCKS, _POSITIONS = 16, 224, 24, 512


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that scoring needs."""

    def pair(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]

    vision, text = "blip.visual_encoder", "blip.text_encoder"
    yield f"{vision}.cls_token", (1, 1, _VISION)
    yield f"{vision}.pos_embed", (1, (_SIZE // _PATCH) ** 2 + 1, _VISION)
    yield from pair(f"{vision}.patch_embed.proj", _VISION, 3, _PATCH, _PATCH)
    yield from pair(f"{vision}.norm", _VISION)
    for number in range(_BLOCKS):
        block = f"{vision}.blocks.{number}"
        yield from pair(f"{block}.norm1", _VISION)
        yield from pair(f"{block}.norm2", _VISION)
        yield from pair(f"{block}.attn.qkv", 3 * _VISION, _VISION)
        yield from pair(f"{block}.attn.proj", _VISION, _VISION)
        yield from pair(f"{block}.mlp.fc1", 4 * _VISION, _VISION)
        yield from pair(f"{block}.mlp.fc2", _VISION, 4 * _VISION)
    yield f"{text}.embeddings.word_embeddings.weight", (_WORDS, _TEXT)
    yield f"{text}.embeddings.position_embeddings.weight", (_POSITIONS, _TEXT)
    yield from pair(f"{text}.embeddings.LayerNorm", _TEXT)
    for number in range(_LAYERS):
        layer = f"{text}.encoder.layer.{number}"
        for kind, read in (("attention", _TEXT), ("crossattention", _VISION)):
            yield from pair(f"{layer}.{kind}.self.query", _TEXT, _TEXT)
            yield from pair(f"{layer}.{kind}.self.key", _TEXT, read)
            yield from pair(f"{layer}.{kind}.self.value", _TEXT, read)
            yield from pair(f"{layer}.{kind}.output.dense", _TEXT, _TEXT)
            yield from pair(f"{layer}.{kind}.output.LayerNorm", _TEXT)
        yield from pair(f"{layer}.intermediate.dense", 4 * _TEXT, _TEXT)
        yield from pair(f"{layer}.output.dense", _TEXT, 4 * _TEXT)
        yield from pair(f"{layer}.output.LayerNorm", _TEXT)
    widths = (_TEXT, 1024, 128, 64, 16, 1)
    for place, into, out in zip((0, 2, 4, 6, 7), widths[:-1], widths[1:], strict=True):
        yield from pair(f"mlp.layers.{place}", out, into)


def random_checkpoint(folder: Path, seed: int = 0) -> int:
    """Write ImageReward.pt and a BERT vocabulary of its size; the number of weights."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes():
        if "norm" in name.lower() and name.endswith(".weight"):
            tensors[name] = torch.ones(shape)
        else:
            spread = 0.02 if len(shape) == 1 else 1.0 / math.sqrt(math.prod(shape[1:]))
            tensors[name] = spread * torch.randn(shape, generator=generator)
    folder.mkdir(parents=True)
    torch.save(tensors, folder / FILE)
    letters = [prefix + letter for prefix in ("", "##") for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    words += [f"[unused{number}]" for number in range(30_522 - len(words))]
    (folder / "vocab.txt").write_text("\n".join(words))
    return sum(value.numel() for value in tensors.values())


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, default=8)
    given = parser.parse_args()
    weights, cascade = given.folder / "imagereward", given.folder / "cascade"
    if not weights.exists():
        print(f"{random_checkpoint(weights):,} weights", flush=True)
    estimator = ["rewards=[imagereward]", f"rewards.imagereward.path={weights}", "rewards.imagereward.batch_size=8"]
    estimator.append(f"rewards.imagereward.tokenizer={weights}")
    few = ["model=shapes", f"prompts_per_set={given.prompts}", "sampler.prompts_per_chunk=8"]
    student = ["samplers.student.steps=4", "samplers.student.guidance_scale=1"]
    begun = time.process_time()
    words = ["models=[student:base,base]", *few, "prompts=[shapes.train]", *estimator, *student, "sampler.steps=4"]
    _run("calibrate", *words, "rate=0.25", f"output_dir={cascade}")
    print(f"calibrated in {time.process_time() - begun:.0f} s of processor time", flush=True)
    words = [f"models=[student:base,{cascade}]", *few, "prompts=[shapes]", "rewards=[shapes_judge]", *student]
    _run("evaluate", *words, "images_per_prompt=1", "against=student", f"output_dir={given.folder / 'evaluation'}")
    passes = json.loads((given.folder / "evaluation" / "results.json").read_text(encoding="utf-8"))["spread"]
    print({one["model"]: one["network_passes"] for one in passes})
    print(f"all in {time.process_time() - begun:.0f} s of processor time")


def _run(*words: str) -> None:
    print("prdp", *words, flush=True)
    if prdp(words):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
