"""Trains the tiny Stable Diffusion 3 as a rectified flow on the latents of rendered scenes.

A transformer from scratch learns slowly from data alone. So the other embedded pipeline teaches it, from some step on:
its guided prediction at the matched noise level is the target, which has no noise of its own, and blocks inside are
drawn to its features.

Can be killed at any time: the state of the training, optimizer and average included, is stored now and then, and the
next start goes on from it as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from prdp.support.storage import write_atomically
from prdp.worlds.shapes.pretrain_unet import LatentData, noisy_caption, take_step

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline

EMPTY_T5_ROWS = 256
"""The rows of zeros that diffusers appends to the captions of a pipeline without T5, unless told another number."""
STATE = "training.safetensors"
SAVE_EVERY = 250
"""Steps after which the state is stored."""
FEATURE_WEIGHT = 0.5
TAUGHT_TIME_SHIFT = 0.4
"""Mean of the logits of times with a teacher: layout is decided at high noise."""


def stable_then_linear(step: int, steps: int, warmup: int, decay: int) -> float:
    """Learning-rate factor: linear warm-up from 0, then 1, then linearly to 0 in the last `decay` steps.

    A training that ends before its decay can be prolonged without a break.
    """
    return min(1.0, (step + 1) / warmup, (steps - step) / max(1, decay))


def encode_captions(
    pipeline: StableDiffusion3Pipeline, captions: Sequence[str], empty_rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the pipeline's own `encode_prompt` gives, with gradient.

    Returns:
        states [n, tokens + empty_rows, joint_attention_dim] and pooled states [n, pooled_projection_dim], float32.
    """
    tokenizer = pipeline.tokenizer
    ids = tokenizer(
        list(captions), padding="max_length", max_length=tokenizer.model_max_length, truncation=True,
        return_tensors="pt",
    ).input_ids  # fmt: skip
    encoded = [encoder(ids, output_hidden_states=True) for encoder in (pipeline.text_encoder, pipeline.text_encoder_2)]
    states = torch.cat([each.hidden_states[-2] for each in encoded], dim=-1)
    return F.pad(states, (0, 0, 0, empty_rows)), torch.cat([each.text_embeds for each in encoded], dim=-1)


class Teacher:
    """The guided velocities and the features of a Stable Diffusion, at the noise levels of a flow on the same latents.

    A flow's latents (1 - sigma) x_0 + sigma epsilon, divided by their norm, are those of the variance-preserving
    process at the timestep where the ratio of noise to signal is the same. Levels above its last count as its last.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, guidance_scale: float) -> None:
        self._pipeline, self._guidance_scale = pipeline, guidance_scale
        self._unet = pipeline.unet.eval().requires_grad_(False)
        self._encoder = pipeline.text_encoder.eval().requires_grad_(False)
        level = pipeline.scheduler.alphas_cumprod.double()
        self._ratios = ((1.0 - level) / level).sqrt().numpy()
        self._seen: dict[int, torch.Tensor] = {}
        blocks = self._unet.up_blocks
        for place, block in enumerate((blocks[0], blocks[-1])):
            block.register_forward_hook(lambda module, inputs, output, place=place: self._seen.update({place: output}))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each of the features."""
        config = self._unet.config
        return config.block_out_channels[-1], config.block_out_channels[0]

    @torch.no_grad()
    def teach(
        self, latents: torch.Tensor, sigma: torch.Tensor, captions: Sequence[str]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Velocities [b, C, h, w] at noised latents, and features [b, h w, width], normal in each position.

        Args:
            sigma: [b].
        """
        ratio = (sigma / (1.0 - sigma)).double().numpy()
        times = torch.from_numpy(np.interp(ratio, self._ratios, np.arange(len(self._ratios)))).float()
        signal = torch.from_numpy(1.0 / np.sqrt(1.0 + ratio.clip(max=self._ratios[-1]) ** 2)).float()[
            :, None, None, None
        ]
        spread = (1.0 - signal.square()).sqrt()
        at = sigma[:, None, None, None]
        scaled = latents / ((1.0 - at).square() + at.square()).sqrt()
        tokenizer = self._pipeline.tokenizer
        ids = tokenizer(
            [*captions, ""], padding="max_length", max_length=tokenizer.model_max_length, truncation=True,
            return_tensors="pt",
        ).input_ids  # fmt: skip
        states = self._encoder(ids).last_hidden_state
        conditional = self._unet(scaled, times, encoder_hidden_states=states[:-1]).sample
        features = [self._seen[place] for place in range(len(self.widths))]
        empty = states[-1:].expand(len(latents), -1, -1)
        unconditional = self._unet(scaled, times, encoder_hidden_states=empty).sample
        epsilon = unconditional + self._guidance_scale * (conditional - unconditional)
        clean = (scaled - spread * epsilon) / signal
        flat = [feature.flatten(2).transpose(1, 2) for feature in features]
        return (latents - clean) / at, [F.layer_norm(feature, feature.shape[-1:]) for feature in flat]


def train_flow(
    pipeline: StableDiffusion3Pipeline,
    data: LatentData,
    folder: Path,
    *,
    teacher: Teacher,
    teacher_from: int,
    steps: int,
    decay_steps: int,
    batch_size: int,
    learning_rate: float,
    caption_noise: float,
    noisy_steps: int,
    caption_dropout: float,
    ema_decay: float,
    seed: int,
    log: Callable[[int, dict[str, float]], None],
) -> None:
    """Predicts noise - data at logit-normal times (arXiv:2403.03206, section 3.1); leaves the averages in the pipeline.

    Args:
        folder: where the state is kept; a state found there is gone on with.
        teacher: gives targets and features instead of the data, from step `teacher_from` on.
        decay_steps: last steps, in which the rate falls to 0.
        caption_noise: rate of `noisy_caption` in the last `noisy_steps` steps.
        caption_dropout: fraction of captions replaced by the empty one, for classifier-free guidance.
    """
    modules = torch.nn.ModuleDict(
        {name: getattr(pipeline, name) for name in ("transformer", "text_encoder", "text_encoder_2")}
    )
    blocks = pipeline.transformer.transformer_blocks
    seen: dict[int, torch.Tensor] = {}
    hooks = [
        blocks[index].register_forward_hook(lambda module, inputs, output, place=place: seen.update({place: output[1]}))
        for place, index in enumerate((1, len(blocks) - 2))
    ]
    width = pipeline.transformer.config.caption_projection_dim
    heads = torch.nn.ModuleList(torch.nn.Linear(width, features) for features in teacher.widths)
    modules["heads"] = heads
    average = deepcopy(modules).requires_grad_(False)
    optimizer = torch.optim.AdamW(modules.parameters(), lr=learning_rate, weight_decay=1e-2, betas=(0.9, 0.99))
    done = _load(folder / STATE, modules, average, optimizer)
    modules.train()
    totals = {"flow/loss": 0.0, "flow/feature_loss": 0.0}
    for step in range(done, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * stable_then_linear(step, steps, 100, decay_steps)
        rng = np.random.default_rng((seed, 3, step))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        # So many rows for those who call the pipeline without max_sequence_length; they cost four times as much.
        empty_rows, count = (EMPTY_T5_ROWS, batch_size // 4) if step % 8 == 7 else (1, batch_size)
        rows = rng.integers(len(data.scenes), size=count)
        noise_rate = caption_noise if step >= steps - noisy_steps else 0.0
        captions = [
            "" if rng.random() < caption_dropout else noisy_caption(data.scenes[row], rng, noise_rate) for row in rows
        ]
        clean = data.latents[torch.from_numpy(rows)]
        noise = torch.randn(clean.shape, generator=generator)
        taught = step >= teacher_from
        times = torch.sigmoid(torch.randn(count, generator=generator) + (TAUGHT_TIME_SHIFT if taught else 0.0))
        sigma = times[:, None, None, None]
        noised = (1.0 - sigma) * clean + sigma * noise
        target, features = teacher.teach(noised, times, captions) if taught else (noise - clean, [])
        states, pooled = encode_captions(pipeline, captions, empty_rows)
        velocity = pipeline.transformer(
            noised, timestep=1000.0 * times, encoder_hidden_states=states, pooled_projections=pooled
        ).sample
        losses = {
            "flow/loss": F.mse_loss(velocity, target),
            "flow/feature_loss": sum(
                (
                    F.mse_loss(head(seen[place]), feature)
                    for place, (head, feature) in enumerate(zip(heads, features, strict=False))
                ),
                torch.zeros(()),
            ),
        }
        loss = losses["flow/loss"] + FEATURE_WEIGHT * losses["flow/feature_loss"]
        norm = take_step(loss, modules, average, optimizer, step, ema_decay)
        totals = {name: total + losses[name].item() for name, total in totals.items()}
        if (step + 1) % 50 == 0:
            log(step + 1, {name: total / 50 for name, total in totals.items()} | {"flow/grad_norm": norm})
            totals = dict.fromkeys(totals, 0.0)
        if (step + 1) % SAVE_EVERY == 0 or step == steps - 1:
            _save(folder / STATE, step + 1, modules, average, optimizer)
    for hook in hooks:
        hook.remove()
    modules.load_state_dict(average.state_dict())
    modules.eval()


def _save(
    file: Path, done: int, modules: torch.nn.Module, average: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    from safetensors.torch import save

    tensors = {f"weights/{name}": value for name, value in modules.state_dict().items()}
    tensors |= {f"average/{name}": value for name, value in average.state_dict().items()}
    for index, entries in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in entries.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    write_atomically(file, save(contiguous, {"done": str(done)}))


def _load(
    file: Path, modules: torch.nn.Module, average: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> int:  # fmt: skip
    """The number of steps that are done; 0 without a file."""
    from safetensors import safe_open

    if not file.is_file():
        return 0
    kinds: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "average": {}, "optimizer": {}}
    with safe_open(file, framework="pt") as stored:
        done = int(stored.metadata()["done"])
        for key in stored.keys():  # noqa: SIM118
            kind, name = key.split("/", 1)
            kinds[kind][name] = stored.get_tensor(key)
    modules.load_state_dict(kinds["weights"])
    average.load_state_dict(kinds["average"])
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in kinds["optimizer"].items():
        index, name = key.split("/")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return done
