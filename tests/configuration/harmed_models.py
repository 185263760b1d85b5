"""Changes to a folder of a model that make it one which is not computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Harm = Callable[[Path], object]


def edit(file: str, **values: Any) -> Harm:
    """Sets keys of a JSON file of the folder."""

    def harm(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, **values}))

    return harm


def unet(**values: Any) -> Harm:
    return edit("unet/config.json", **values)


def scheduler(without: str = "", **values: Any) -> Harm:
    def harm(folder: Path) -> None:
        file = folder / "scheduler" / "scheduler_config.json"
        content = {**json.loads(file.read_text()), **values}
        file.write_text(json.dumps({key: value for key, value in content.items() if not without or without not in key}))

    return harm


def variant(folder: Path) -> None:
    for file in folder.glob("*/*.safetensors"):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))


def pickled(folder: Path) -> None:
    for file in folder.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".bin"))


def lacking(file: str, ending: str) -> Harm:
    """Takes a tensor out of a file of weights."""

    def harm(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        kept = {name: value for name, value in load_file(folder / file).items() if not name.endswith(ending)}
        save_file(kept, folder / file, {"format": "pt"})

    return harm


def of_class(name: str | None) -> Harm:
    return edit("model_index.json", _class_name=name)
