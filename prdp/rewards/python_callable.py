"""Any Python function as a reward, named by its dotted path."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prdp.rewards.dependencies import require
from prdp.types import UInt8


class PythonCallable:
    """Calls `function(images, prompts, metadata)`.

    Args:
        path: 'package.module.function'; modules of the current folder are found too.
        version: of the function, for the log.

    Raises:
        ValueError: the module or the function does not exist, or is not callable.
    """

    def __init__(self, path: str, version: str = "1") -> None:
        self.name = path.rpartition(".")[2]
        self.version = version
        self._function = _locate(path)

    @classmethod
    def check(cls, path: str, version: str = "1") -> None:
        """Raise ValueError when the function cannot be found."""
        _locate(path)

    def score(self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Any:
        """Whatever the function returns for uint8 images [B, H, W, 3]; see `prdp.rewards.base.Reward`."""
        return self._function(images, prompts, metadata)


def _locate(path: str) -> Any:
    module_name, _, attribute = path.rpartition(".")
    if not module_name:
        raise ValueError(f"reward.path is {path!r}, expected package.module.function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        package = missing.partition(".")[0]
        own = f"{module_name}.".startswith(f"{missing}.")
        if missing and not own and not require(attribute, package, install=package):
            return None
        raise ValueError(f"reward.path is {path!r}: {error}") from None
    if not callable(getattr(module, attribute, None)):
        raise ValueError(f"reward.path is {path!r}: module {module_name} has no function {attribute}")
    return getattr(module, attribute)
