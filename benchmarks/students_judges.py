"""Judges of another kind than the pixel judge whose sub-scores route the cascades of students.py.

    python benchmarks/students_judges.py FOLDER

`reader` is a network that has learned from rendered scenes what is in a picture; it is trained here, in about two
minutes, and has seen neither the pixel judge nor a model's picture. `likelihood` is the embedded model itself: by how
much the prompt helps it to denoise the picture. Both judge the pictures that an evaluation of students.py has kept.
Writes FOLDER/reader.safetensors, FOLDER/judges.jsonl and FOLDER/judges_check.json, which `students.py report` reads;
started again it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))

from students_judges_table import CHECK, EVALUATION, JUDGES, MODELS, SCORES
from students_report import finished

from prdp.evaluation.store import FOLDER, read_image
from prdp.support.json_lines import load_json
from prdp.support.storage import load_tensors, save_tensors, write_atomically
from prdp.types import Float64, UInt8
from prdp.worlds.shapes.corrupt import corrupt
from prdp.worlds.shapes.grammar import caption, parse
from prdp.worlds.shapes.render import render
from prdp.worlds.shapes.scene import BACKGROUNDS, COLORS, FILLS, MAX_OBJECTS, SHAPES, SIZES, Scene, random_scene
from prdp.worlds.shapes.tiny_pipeline import IMAGE_SIZE

WEIGHTS = "reader.safetensors"
_PICTURES, _STEPS, _BATCH, _RATE = 8_192, 1_000, 64, 3e-3
_BLURRED = 0.25
"""Share of training pictures that the autoencoder has taken apart and put together."""
_DRAWS = 4
"""Noise levels at which the model denoises a picture, one in each part of the training timesteps."""

_OBJECT = [f"{color} {other}" for others in (SHAPES, SIZES, FILLS) for color in COLORS for other in others]
_NUMBER = {fact: place for place, fact in enumerate(_OBJECT)}
_BACKGROUNDS = tuple(BACKGROUNDS)
_OUTPUTS = len(_OBJECT) + MAX_OBJECTS + len(_BACKGROUNDS)


def object_facts(scene: Scene) -> list[int]:
    """Numbers of what must be seen of a scene's objects: each one's color with its shape, its size and its fill."""
    return [_NUMBER[f"{one.color} {other}"] for one in scene.objects for other in (one.shape, one.size, one.fill)]


class Reader(nn.Module):
    """Pictures float32 [b, 3, 32, 32] in [-1, 1] -> logits [b, facts of objects + counts + backgrounds]."""

    def __init__(self) -> None:
        super().__init__()
        widths, strides = (3, 24, 32, 48, 64, 96), (1, 2, 1, 2, 1)
        layers: list[nn.Module] = []
        for before, after, stride in zip(widths[:-1], widths[1:], strides, strict=True):
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(2 * widths[-1], 160), nn.SiLU(), nn.Linear(160, _OUTPUTS))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        seen = self.body(pictures).flatten(2)
        logits: torch.Tensor = self.head(torch.cat([seen.mean(-1), seen.amax(-1)], 1))
        return logits

    @torch.no_grad()
    def scores(self, pictures: UInt8, prompts: Sequence[str]) -> Float64:
        """The mean probability of all that a prompt tells but the relation, float64 [n]."""
        logits = self(_pixels(pictures)).double()
        objects, counts, grounds = logits.split([len(_OBJECT), MAX_OBJECTS, len(_BACKGROUNDS)], 1)
        seen, count, ground = objects.sigmoid().numpy(), counts.softmax(1).numpy(), grounds.softmax(1).numpy()
        found = []
        for row, scene in enumerate(map(parse, prompts)):
            told = [count[row, len(scene.objects) - 1], ground[row, _BACKGROUNDS.index(scene.background)]]
            found.append(np.mean([*seen[row, object_facts(scene)], *told]))
        return np.array(found)


def trained_reader(seed: int = 0) -> Iterator[tuple[int, float, Reader]]:
    """Learn from rendered scenes of both splits; (step, loss, reader) now and then and at the end."""
    rng = np.random.default_rng((seed, 31))
    scenes = [random_scene(rng) for _ in range(_PICTURES)]
    pictures = _pixels(np.stack([render(one, rng, IMAGE_SIZE) for one in scenes]))
    soft = rng.permutation(_PICTURES)[: int(_BLURRED * _PICTURES)]
    pictures[soft] = _through_autoencoder(pictures[soft])
    objects = torch.zeros(_PICTURES, len(_OBJECT))
    for row, one in enumerate(scenes):
        objects[row, object_facts(one)] = 1.0
    counts = torch.tensor([len(one.objects) - 1 for one in scenes])
    grounds = torch.tensor([_BACKGROUNDS.index(one.background) for one in scenes])
    torch.manual_seed(seed)
    reader = Reader()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=_RATE, weight_decay=1e-2)
    for step in range(_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(1.0, (step + 1) / 100) * 0.5 * (1 + np.cos(np.pi * step / _STEPS))
        rows = torch.from_numpy(rng.integers(_PICTURES, size=_BATCH))
        given = pictures[rows] + 0.1 * float(rng.random()) * torch.randn(_BATCH, 3, IMAGE_SIZE, IMAGE_SIZE)
        shift = rng.integers(-2, 3, size=2).tolist()
        logits = reader(torch.roll(given, shift, (2, 3)))
        seen, count, ground = logits.split([len(_OBJECT), MAX_OBJECTS, len(_BACKGROUNDS)], 1)
        loss = (
            functional.binary_cross_entropy_with_logits(seen, objects[rows], reduction="sum") / _BATCH
            + functional.cross_entropy(count, counts[rows])
            + functional.cross_entropy(ground, grounds[rows])
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % 100 == 99:
            yield step + 1, float(loss.detach()), reader


class Likelihood:
    """The embedded model as a judge: the error of denoising a picture without its prompt, less that with it.

    Its expectation at all noise levels, weighted, is the mutual information of the picture and the prompt, as the model
    knows it (Kong et al. 2023, arXiv:2310.07972). All pictures of a prompt meet the same noise.
    """

    def __init__(self) -> None:
        from prdp.config import ModelConfig
        from prdp.evaluation.loading import loaded_policy
        from prdp.evaluation.models import find_models

        [model] = find_models(["base"], ModelConfig(path="shapes", device="cpu"))
        self.policy = loaded_policy(model, "float32")

    @torch.no_grad()
    def scores(self, pictures: UInt8, prompts: Sequence[str]) -> Float64:
        """Float64 [n], in squared units of the network's output."""
        policy = self.policy
        latents, conditions = policy.encode_images(pictures), policy.encode(prompts)
        nothing = policy.encode([""] * len(prompts))
        gain = torch.zeros(len(pictures), dtype=torch.float64)
        for draw in range(_DRAWS):
            times = np.full(len(pictures), policy.process.time_at((draw + 0.5) / _DRAWS))
            seeds = [(37, draw, *one.encode()) for one in prompts]
            noise = [np.random.default_rng(seed).standard_normal(tuple(latents.shape[1:])) for seed in seeds]
            noised, right = policy.process.noised(latents, times, torch.from_numpy(np.stack(noise)).float())
            asked = torch.from_numpy(times).float()
            without, given = (
                (policy.output(noised, asked, told, guidance_scale=1.0) - right).double().square().mean((1, 2, 3))
                for told in (nothing, conditions)
            )
            gain += (without - given) / _DRAWS
        return gain.numpy()


def checked(judge: Any, count: int = 32, seed: int = 5) -> dict[str, float]:
    """How often a judge ranks the prompt of a rendered scene above one with an attribute changed, by attribute."""
    rng = np.random.default_rng((seed, 41))
    found = {}
    for attribute in ("color", "shape", "size", "fill", "count", "background"):
        scenes = [random_scene(rng) for _ in range(count)]
        pictures = np.stack([render(one, rng, IMAGE_SIZE) for one in scenes])
        right = judge.scores(pictures, [caption(one) for one in scenes])
        wrong = judge.scores(pictures, [caption(corrupt(one, attribute, rng)) for one in scenes])
        found[attribute] = float((right > wrong).mean())
    return found


def kept(place: Path, model: str) -> tuple[UInt8, list[str]]:
    """Pictures of a seed's evaluation with their prompts, one a prompt, in order."""
    pictures, prompts = [], []
    for chunk in sorted((place / EVALUATION / FOLDER / model).glob("*/seed_*/*")):
        prompts += load_json((chunk / "chunk.json").read_bytes())["prompts"]
        pictures += [read_image(file) for file in sorted(chunk.glob("*_0.png"))]
    return np.stack(pictures), prompts


def judged(judge: Any, place: Path, models: Sequence[str]) -> dict[str, list[float]]:
    """Model -> scores; a picture that several models have is judged once."""
    known: dict[tuple[str, bytes], float] = {}
    found = {}
    for model in models:
        pictures, prompts = kept(place, model)
        keys = [(prompt, picture.tobytes()) for prompt, picture in zip(prompts, pictures, strict=True)]
        new = [row for row, key in enumerate(keys) if key not in known]
        for first in range(0, len(new), _BATCH):
            rows = new[first : first + _BATCH]
            scores = judge.scores(pictures[rows], [prompts[row] for row in rows])
            known |= {keys[row]: float(score) for row, score in zip(rows, scores, strict=True)}
        found[model] = [known[key] for key in keys]
    return found


def _pixels(pictures: UInt8) -> torch.Tensor:
    from prdp.worlds.shapes.pretrain_vae import to_pixels

    return to_pixels(np.array(pictures))


@torch.no_grad()
def _through_autoencoder(pictures: torch.Tensor) -> torch.Tensor:
    from diffusers import AutoencoderKL

    from prdp.worlds.shapes.tiny_pipeline import pipeline_folder

    vae: Any = AutoencoderKL.from_pretrained(str(pipeline_folder() / "vae"))
    parts = [vae.decode(vae.encode(part).latent_dist.mode()).sample.clamp(-1, 1) for part in pictures.split(_BATCH)]
    return torch.cat(parts)


def _reader(file: Path) -> Reader:
    """Trained, or as it was trained before."""
    reader = Reader()
    if not file.exists():
        for step, loss, learning in trained_reader():
            print(f"reader: step {step} of {_STEPS}: loss {loss:.3f}, {time.process_time():.0f} s", flush=True)
            reader = learning
        save_tensors(file, {name: value.numpy() for name, value in reader.state_dict().items()})
    reader.load_state_dict({name: torch.from_numpy(value) for name, value in load_tensors(file).items()})
    return reader.eval()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of students.py run")
    parser.add_argument("--out", type=Path, help="another folder for what is written")
    given = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    out = given.out or given.folder
    out.mkdir(parents=True, exist_ok=True)
    judges: Mapping[str, Any] = dict(zip(JUDGES, (_reader(out / WEIGHTS), Likelihood()), strict=True))
    if not (out / CHECK).exists():
        check = {name: checked(judge) for name, judge in judges.items()}
        write_atomically(out / CHECK, (json.dumps(check, indent=2) + "\n").encode())
        print(json.dumps(check, indent=2), flush=True)
    there = out / SCORES
    lines = [json.loads(line) for line in there.read_text(encoding="utf-8").splitlines()] if there.exists() else []
    for place in finished(given.folder):
        for name, judge in judges.items():
            seed = int(place.name)
            known = {line["model"] for line in lines if (line["seed"], line["judge"]) == (seed, name)}
            found = judged(judge, place, [model for model in MODELS if model not in known])
            lines += [{"seed": seed, "judge": name, "model": model, "scores": one} for model, one in found.items()]
            write_atomically(there, "".join(json.dumps(line) + "\n" for line in lines).encode())
            print(f"seed {place.name}, {name}: {time.process_time():.0f} s", flush=True)


if __name__ == "__main__":
    main()
