"""How the adapters of a run are loaded in plain diffusers: lines of the programs that are written beside exports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prdp.config import ModelConfig
from prdp.diffusion.adapter_files import model_adapters
from prdp.diffusion.adapter_tensors import PEFT_CONFIG, PEFT_FILE, PEFT_KEYS, PEFT_PREFIX, adapter_file, read_tensors
from prdp.diffusion.adapters import frozen_name
from prdp.diffusion.fused_factors import authors_layout

if TYPE_CHECKING:
    import torch

_PEFT = '''
def load_peft(folder, name):
    with open(f"{{folder}}/{config}") as file:
        settings = json.load(file)
    state = load_file(f"{{folder}}/{file}")
    pipeline.{component}.load_lora_adapter(
        {{key.removeprefix("{prefix}"): value for key, value in state.items()}},
        prefix=None,
        adapter_name=name,
        metadata={{key: settings[key] for key in {keys} if settings.get(key) is not None}},
    )

'''


def _misread(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether diffusers leaves out or changes something of a file: names of authors, and kohya's text encoders and
    alphas that differ.
    """
    alphas = {float(value) for name, value in tensors.items() if name.endswith(".alpha")}
    return authors_layout(tensors) is not None or len(alphas) > 1 or any(name.startswith("lora_te") for name in tensors)


def loading_lines(model: ModelConfig, mode: str, component: str) -> list[str]:
    """Python that loads `weights`, the folder of an export, and the frozen adapters into `pipeline`.

    Args:
        model: the base of the run, with its adapters.
        mode: learner.mode; full weights have the adapters in them, and nothing is loaded.
        component: of the pipeline that learned.
    """
    if mode == "full":
        return []
    if not model.adapters:
        return ["pipeline.load_lora_weights(weights)"]
    files = [adapter_file("model.adapters", path).absolute() for path in model.adapters]
    names = [*map(frozen_name, range(len(files))), "trained"]
    weights = [*(weight for _, weight in model_adapters(model)), 1.0]
    lines = []
    if any(file.name == PEFT_FILE for file in files):
        lines += ["import json", "from safetensors.torch import load_file"]
        lines += _PEFT.format(
            config=PEFT_CONFIG,
            file=PEFT_FILE,
            component=component,
            prefix=PEFT_PREFIX,
            keys=(*PEFT_KEYS, "target_modules"),
        ).split("\n")
    for file, name in zip(files, names, strict=False):
        if file.name == PEFT_FILE:
            lines.append(f"load_peft({str(file.parent)!r}, {name!r})")
        elif _misread(read_tensors("model.adapters", file)):
            lines += [
                "from prdp.experts.lora_files import diffusers_state  # diffusers does not read all of this file",
                f"pipeline.load_lora_weights(diffusers_state({str(file)!r}), adapter_name={name!r})",
            ]
        else:
            place = f"{str(file.parent)!r}, weight_name={file.name!r}"
            lines.append(f"pipeline.load_lora_weights({place}, adapter_name={name!r})")
    return [
        *lines,
        "pipeline.load_lora_weights(weights, adapter_name='trained')",
        f"pipeline.set_adapters({names!r}, {weights!r})",
    ]
