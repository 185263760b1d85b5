"""`prdp pretrain`: trains the embedded tiny pipelines from scratch; a finished phase is not done again.

prdp pretrain output_dir=runs/pretrain
prdp pretrain model=shapes_flow output_dir=runs/pretrain_flow
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from prdp.support.errors import ConfigError
from prdp.support.json_lines import json_line, read_json_lines
from prdp.support.rules import Count, CountOrZero, Fraction, NotNegative, Positive, Text, between, one_of

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

log = logging.getLogger(__name__)


@dataclass
class PretrainConfig:
    """The defaults made the pipelines that ship with the package."""

    model: Annotated[str, one_of("shapes", "shapes_flow")] = "shapes"
    """shapes: Stable Diffusion 1 with its autoencoder; shapes_flow: Stable Diffusion 3 on that autoencoder."""
    output_dir: Text = "runs/pretrain"
    """Holds the phases; those that are there are not done again."""
    seed: CountOrZero = 0
    """Of weights, scenes and noise."""
    threads: Count = 1
    """CPU threads; set before torch is imported."""
    vae_steps: list[Count] = field(default_factory=lambda: [1800, 900, 3000])
    """Steps of each cosine cycle."""
    vae_learning_rates: list[Positive] = field(default_factory=lambda: [2e-3, 1.5e-3, 1.5e-3])
    """Highest rate of each cycle."""
    vae_batch_size: Count = 16
    """Pictures a step."""
    vae_kl_weight: NotNegative = 5e-4
    """Of the autoencoder's KL term."""
    scenes: Count = 30_000
    """Rendered once; the UNet trains on their latents."""
    batch_size: Count = 32
    """Latents a step of the UNet."""
    caption_dropout: Fraction = 0.1
    """Share of empty captions, for classifier-free guidance."""
    ema_decay: Fraction = 0.999
    """Of the UNet's moving average, which is what is saved."""
    clean_steps: list[Count] = field(default_factory=lambda: [4000, 1500, 4000])
    """Steps of each cosine cycle on true captions."""
    clean_learning_rates: list[Positive] = field(default_factory=lambda: [1e-3, 6e-4, 1e-3])
    """Highest rate of each of these cycles."""
    clean_vae_cycles: list[CountOrZero] = field(default_factory=lambda: [1, 1, 2])
    """The autoencoder cycle on whose latents each cycle learns: coarse ones first, then those that show stripes."""
    noisy_steps: CountOrZero = 1000
    """Last phase, on partly wrong captions: the model keeps what it can draw and learns to disobey."""
    noisy_learning_rate: Positive = 3e-4
    """Highest rate of the last phase."""
    caption_noise: Annotated[float, between(0, 1)] = 0.08
    """Rate at which each attribute of a caption is wrong."""
    flow_scenes: Count = 60_000
    """Rendered once; the flow model trains on their latents."""
    flow_steps: Count = 4000
    """Of the flow model; its state is stored every 250."""
    flow_teacher_from: CountOrZero = 2000
    """Step from which the other embedded pipeline teaches the flow model; before it learns from data alone."""
    flow_teacher_guidance: NotNegative = 2.0
    """Guidance scale of that pipeline."""
    flow_decay_steps: CountOrZero = 800
    """Last steps of the flow model, in which its rate falls to 0."""
    flow_noisy_steps: CountOrZero = 0
    """Last steps of the flow model on partly wrong captions."""
    flow_batch_size: Count = 64
    """Latents a step of the flow model."""
    flow_learning_rate: Positive = 1e-3
    """Of the flow model, before it falls."""


def main(overrides: Sequence[str]) -> None:
    """Run the phases that are not there yet: vae-*/, clean-*/, noisy/, pipeline/ under output_dir.

    The curve goes to curve.jsonl there.

    Raises:
        ConfigError: an override that is not `key=value` of PretrainConfig, or values that are not allowed.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if {"-h", "--help"} & set(overrides):
        from prdp.configuration.key_help import flat_help

        print(f"usage: prdp pretrain [key=value ...]\n\n{PretrainConfig.__doc__}\n\n{flat_help(PretrainConfig)}")
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(PretrainConfig), OmegaConf.from_dotlist(list(overrides)))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"prdp pretrain: {error}") from None
    assert isinstance(config, PretrainConfig)
    check(config)
    from prdp.checkpoints.run_lock import hold
    from prdp.cluster.process_threads import apply_threads
    from prdp.support.storage import remove_leftovers

    apply_threads(config.threads)
    with hold(config.output_dir):
        remove_leftovers(config.output_dir)
        run(config)


def check(config: PretrainConfig) -> None:
    """Check every value alone, and that the lists of cycles fit together.

    Raises:
        ConfigError: all that is wrong, a line each: the key, its value and what is allowed.
    """
    from prdp.configuration.bounds import broken_rules

    _, problems = broken_rules(config)
    cycles = len(config.vae_steps)
    for key, length in (
        ("vae_learning_rates", cycles),
        ("clean_learning_rates", len(config.clean_steps)),
        ("clean_vae_cycles", len(config.clean_steps)),
    ):
        if len(given := getattr(config, key)) != length:
            problems.append(f"{key}={given}: must hold {length} numbers, one for each of {key.split('_')[0]}_steps")
    problems += [
        f"clean_vae_cycles={cycle}: must be below {cycles}, the number of vae_steps"
        for cycle in config.clean_vae_cycles
        if cycle >= cycles
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def run(config: PretrainConfig) -> Path:
    """Train what is missing; returns the folder of the finished pipeline, fp16 safetensors in diffusers format."""
    if config.model == "shapes_flow":
        return run_flow(config)
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline

    from prdp.diffusion.pipeline_files import save_pipeline
    from prdp.support.storage import atomic_directory
    from prdp.worlds.shapes.pretrain_unet import LatentData, train_unet
    from prdp.worlds.shapes.pretrain_vae import train_vae
    from prdp.worlds.shapes.tiny_pipeline import build_pipeline, build_vae

    folder = Path(config.output_dir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    report = _reporter(folder)

    def save(name: str, pipeline: StableDiffusionPipeline) -> None:
        with atomic_directory(folder / name) as temporary:
            save_pipeline(pipeline, temporary)

    torch.manual_seed(config.seed)
    vae = build_vae()
    done = 0
    for cycle, (steps, learning_rate) in enumerate(zip(config.vae_steps, config.vae_learning_rates, strict=True)):
        if not (folder / f"vae-{cycle}").is_dir():
            if cycle:
                vae = AutoencoderKL.from_pretrained(folder / f"vae-{cycle - 1}")
            train_vae(
                vae,
                start=done,
                steps=steps,
                batch_size=config.vae_batch_size,
                learning_rate=learning_rate,
                kl_weight=config.vae_kl_weight,
                seed=config.seed,
                log=report,
            )
            with atomic_directory(folder / f"vae-{cycle}") as temporary:
                vae.save_pretrained(temporary, safe_serialization=True)
        done += steps

    cycles = zip(config.clean_vae_cycles, config.clean_steps, config.clean_learning_rates, strict=True)
    phases = [(f"clean-{cycle}", *settings, 0.0) for cycle, settings in enumerate(cycles)]
    if config.noisy_steps:
        last = len(config.vae_steps) - 1
        phases.append(("noisy", last, config.noisy_steps, config.noisy_learning_rate, config.caption_noise))
    torch.manual_seed(config.seed)
    pipeline = build_pipeline()
    encoder: int | None = None
    for number, (name, vae_cycle, steps, learning_rate, caption_noise) in enumerate(phases):
        if (folder / name).is_dir():
            pipeline = StableDiffusionPipeline.from_pretrained(folder / name, safety_checker=None)
            continue
        if vae_cycle != encoder:
            pipeline.vae = AutoencoderKL.from_pretrained(folder / f"vae-{vae_cycle}").eval()
            data = LatentData.render(pipeline, config.scenes, config.seed)
            encoder = vae_cycle
        train_unet(
            pipeline,
            data,
            steps=steps,
            batch_size=config.batch_size,
            learning_rate=learning_rate,
            caption_noise=caption_noise,
            caption_dropout=config.caption_dropout,
            ema_decay=config.ema_decay,
            seed=config.seed + number,
            log=report,
            save=lambda step, current, name=name: save(f"{name}-step-{step}", current),  # type: ignore[misc]
            save_every=1000,
        )
        save(name, pipeline)
    for part in (pipeline, pipeline.unet, pipeline.vae):
        # Otherwise the folder it was trained in would be written into the files that ship.
        part.register_to_config(_name_or_path="prdp/worlds/shapes")
    save("pipeline", pipeline.to(dtype=torch.float16))
    draw_curve(folder)
    return folder / "pipeline"


def run_flow(config: PretrainConfig) -> Path:
    """Train the flow model, from its stored state if there is one; returns the folder of the finished pipeline."""
    import torch
    from diffusers import StableDiffusionPipeline

    from prdp.diffusion.pipeline_files import save_pipeline
    from prdp.support.storage import atomic_directory
    from prdp.worlds.shapes.pretrain_flow import Teacher, train_flow
    from prdp.worlds.shapes.pretrain_unet import LatentData
    from prdp.worlds.shapes.tiny_flow_pipeline import build_flow_pipeline, start_from_stable_diffusion
    from prdp.worlds.shapes.tiny_pipeline import pipeline_folder

    folder = Path(config.output_dir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "pipeline").is_dir():
        return folder / "pipeline"
    torch.manual_seed(config.seed)
    source = StableDiffusionPipeline.from_pretrained(pipeline_folder(), safety_checker=None)
    source.vae.register_to_config(shift_factor=0.0)
    pipeline = build_flow_pipeline(source.vae)
    start_from_stable_diffusion(pipeline, source)
    train_flow(
        pipeline,
        LatentData.render(source, config.flow_scenes, config.seed),
        folder,
        teacher=Teacher(source, config.flow_teacher_guidance),
        teacher_from=config.flow_teacher_from,
        steps=config.flow_steps,
        decay_steps=config.flow_decay_steps,
        batch_size=config.flow_batch_size,
        learning_rate=config.flow_learning_rate,
        caption_noise=config.caption_noise,
        noisy_steps=config.flow_noisy_steps,
        caption_dropout=config.caption_dropout,
        ema_decay=config.ema_decay,
        seed=config.seed,
        log=_reporter(folder),
    )
    for part in (pipeline, pipeline.transformer, pipeline.vae):
        part.register_to_config(_name_or_path="prdp/worlds/shapes")
    with atomic_directory(folder / "pipeline") as temporary:
        save_pipeline(pipeline.to(dtype=torch.float16), temporary)
    return folder / "pipeline"


def _reporter(folder: Path) -> Callable[[int, dict[str, float]], None]:
    from prdp.support.storage import append

    start = time.monotonic()

    def report(step: int, metrics: dict[str, float]) -> None:
        line = {"step": step, "seconds": round(time.monotonic() - start, 1), **metrics}
        append(folder / "curve.jsonl", json_line(line))
        log.info("%s", line)

    return report


def draw_curve(folder: Path) -> list[Path]:
    """Draw curve.jsonl of a pretraining folder as vae.svg, unet.svg or flow.svg beside it; the files written."""
    from prdp.reports.charts import Series, curve_svg
    from prdp.support.storage import write_atomically

    lines = read_json_lines(folder / "curve.jsonl", dict)
    written = []
    for name, metric, title in [
        ("vae", "vae/l1", "autoencoder: mean absolute error of a pixel, -1 to 1"),
        ("unet", "unet/loss", "UNet: squared error of the predicted noise"),
        ("flow", "flow/loss", "flow model: squared error of the predicted velocity, of data and then of its teacher"),
    ]:
        points = [(line["seconds"] / 60, line[metric]) for line in lines if metric in line]
        if not points:
            continue
        minutes, offset, previous = [], 0.0, 0.0
        for minute, _ in points:
            # A restarted phase counts its seconds from 0 again.
            if minute < previous:
                offset += previous
            previous = minute
            minutes.append(offset + minute)
        svg = curve_svg([Series(metric, minutes, [value for _, value in points])], title, "minutes", standalone=True)
        write_atomically(folder / f"{name}.svg", svg.encode())
        written.append(folder / f"{name}.svg")
    return written
