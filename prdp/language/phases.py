"""The phases of `prdp collm train`, one after the other, from where a killed run was."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prdp.checkpoints.unfinished import Learned, Unfinished
from prdp.language.folder import write_variant
from prdp.language.models import DeferringModel
from prdp.language.training import Progress
from prdp.support.json_lines import json_line
from prdp.support.storage import append, write_atomically

LOG_FILE = "log.jsonl"
_LINES = 8
"""Of the console, over all steps of something that learns."""


@dataclass(frozen=True)
class Phase:
    """Something that a model learns.

    Attributes:
        name: in the log.
        steps: how many.
        learn: takes them, with the model and from where a `Progress` says.
        fresh: whether it begins with a new model, and not with the one before.
        written: (name of the model's folder, see `write_variant` for the mode) once it is done; None for nothing.
    """

    name: str
    steps: int
    learn: Callable[[DeferringModel, Progress], Iterator[dict[str, float]]]
    fresh: bool
    written: tuple[str, str] | None


def run_phases(
    phases: Sequence[Phase], build: Callable[[], DeferringModel], mode: str, unfinished: Unfinished, every: int
) -> None:
    """Take all phases; their models and the log then lie in `unfinished.made`.

    Args:
        build: a new model.
        mode: what of it learns, see `write_variant`.
        every: steps between two times that learning is written down; 0 for never.

    Raises:
        StartError: what a killed run left was begun with other settings.
    """
    learned = unfinished.read()
    number, first, lines = (0, 0, 0) if learned is None else (int(learned.facts[key]) for key in _FACTS)
    unfinished.made.mkdir(exist_ok=True)
    log = unfinished.made / LOG_FILE
    _cut(log, lines)
    model: DeferringModel | None = None
    progress = Progress()
    if learned is not None:
        model = build()
        _put(model, learned.tensors)
        progress = Progress(first, learned.tensors)
        print(f"goes on at step {first} of {phases[number].name} ({unfinished.place})")
    for place, phase in enumerate(phases[number:], start=number):
        if model is None or (phase.fresh and not progress.first):
            model = build()
        for step, found in enumerate(phase.learn(model, progress), start=progress.first):
            append(log, json_line({"phase": phase.name, "step": step, **found}))
            lines += 1
            watch(phase.name, step, phase.steps, found)
            if every and (step + 1) % every == 0 and step + 1 < phase.steps:
                facts = dict(zip(_FACTS, (place, step + 1, lines), strict=True))
                unfinished.write(Learned(facts, {**_learning(model, mode), **progress.tensors()}))
        progress = Progress()
        if phase.written is not None:
            name, kind = phase.written
            # A run that was killed between a folder and what was written down of it learns its last steps again.
            shutil.rmtree(unfinished.made / name, ignore_errors=True)
            write_variant(unfinished.made / name, model, kind)


_FACTS = ("phase", "step", "lines")
_MODEL = "model/"


def watch(name: str, step: int, steps: int, found: Mapping[str, float]) -> None:
    """Some steps of something that learns, on the console."""
    every = max(1, steps // _LINES)
    if step % every == every - 1 or step == steps - 1:
        told = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
        print(f"{name}, step {step + 1} of {steps}: {told}", flush=True)


def _learning(model: DeferringModel, mode: str) -> dict[str, torch.Tensor]:
    """All that a phase may change."""
    inside = {"full": "", "lora": "lora_", "head": "row."}[mode]
    return {
        f"{_MODEL}{name}": value
        for name, value in model.named_parameters()
        if inside in name or name.startswith("row.")
    }


@torch.no_grad()
def _put(model: DeferringModel, tensors: Mapping[str, torch.Tensor]) -> None:
    there = dict(model.named_parameters())
    for name, value in tensors.items():
        if name.startswith(_MODEL):
            there[name.removeprefix(_MODEL)].copy_(value)
    if "generator" in tensors:
        torch.set_rng_state(tensors["generator"])


def _cut(log: Path, lines: int) -> None:
    """Leave a log's first lines."""
    kept: list[Any] = log.read_text(encoding="utf-8").splitlines(keepends=True)[:lines] if log.exists() else []
    write_atomically(log, "".join(kept).encode())
