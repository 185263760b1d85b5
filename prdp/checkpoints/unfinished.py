"""Learning that ends in a folder that is written as a whole: what it has come to so far lies beside that folder.

runs/student.unfinished/state/   state.json and tensors.safetensors, replaced as a whole
runs/student.unfinished/made/    what is finished of the folder, if anything is
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prdp.checkpoints.run_lock import hold
from prdp.support.errors import StartError
from prdp.support.json_lines import load_json
from prdp.support.storage import atomic_directory, remove_leftovers

if TYPE_CHECKING:
    import torch

STATE, MADE = "state", "made"
_FORMAT = 1
_SHOWN = 3
"""Settings that a refusal names."""


@dataclass(frozen=True)
class Learned:
    """How far learning is.

    Attributes:
        facts: plain values.
        tensors: what learns, and the state of its optimizer.
    """

    facts: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


class Unfinished:
    """Of one folder that something is to end in.

    Args:
        folder: that one.
        settings: nested plain values that decide what is learned; others are refused.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.place = folder.with_name(f"{folder.name}.unfinished")
        self._settings = json.loads(json.dumps(dict(settings), default=str))

    @property
    def made(self) -> Path:
        """The folder of what is finished."""
        return self.place / MADE

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only one that learns it; see `prdp.checkpoints.run_lock.hold`. Nothing is left where nothing was
        written down.
        """
        lock = hold(self.place)
        with ExitStack() as stack:
            stack.callback(self._tidy)
            stack.enter_context(lock)
            remove_leftovers(self.place)
            yield

    def read(self) -> Learned | None:
        """What was written down; None where nothing was.

        Raises:
            StartError: it is damaged, or was learned with other settings, which are named.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = self.place / STATE / "state.json"
        if not file.exists():
            return None
        try:
            content = load_json(file.read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}, expected {_FORMAT}")
            settings, facts = dict(content["settings"]), dict(content["facts"])
            tensors = load_file(file.with_name("tensors.safetensors"))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise StartError(f"{file} is damaged: {error}; remove {self.place} to begin anew") from error
        there, here = _flat(settings), _flat(self._settings)
        other = [
            f"{key}={there.get(key)} there and {here.get(key)} here"
            for key in sorted(there.keys() | here.keys())
            if there.get(key) != here.get(key)
        ]
        if other:
            more = f", and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
            raise StartError(
                f"{self.place} holds what was begun with other settings ({', '.join(other[:_SHOWN])}{more}): give "
                "these, or another output_dir, or remove it"
            )
        return Learned(facts, tensors)

    def write(self, learned: Learned) -> None:
        """Write down how far it is, in place of what was there."""
        from safetensors.torch import save_file

        document = {"format": _FORMAT, "settings": self._settings, "facts": dict(learned.facts)}
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in learned.tensors.items()}
        with atomic_directory(self.place / STATE) as place:
            save_file(tensors, place / "tensors.safetensors")
            (place / "state.json").write_text(json.dumps(document) + "\n", encoding="utf-8")

    def remove(self) -> None:
        """The folder that it was to end in is there."""
        shutil.rmtree(self.place / STATE, ignore_errors=True)
        shutil.rmtree(self.made, ignore_errors=True)

    def _tidy(self) -> None:
        if not (self.place / STATE).exists() and not self.made.exists():
            shutil.rmtree(self.place, ignore_errors=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The state of an optimizer by number of the parameter, in the order of its groups."""
    learned = [value for group in optimizer.param_groups for value in group["params"]]
    return {
        f"optimizer/{number}/{key}": state
        for number, value in enumerate(learned)
        for key, state in optimizer.state.get(value, {}).items()
    }


def put_into_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """What `optimizer_tensors` gave; a state without a shape stays on the host, where AdamW counts its steps."""
    learned = [value for group in optimizer.param_groups for value in group["params"]]
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, number, key = name.split("/")
            parameter = learned[int(number)]
            optimizer.state[parameter][key] = value.clone() if value.dim() == 0 else value.to(parameter.device)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
