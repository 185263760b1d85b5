"""Any Python function as a reward, named by its dotted path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prdp.rewards.dependencies import require
from prdp.support.errors import ConfigError
from prdp.support.targets import locate
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
        self._function = _function(path)

    @classmethod
    def check(cls, path: str, version: str = "1") -> None:
        """Raise ValueError when the function cannot be found."""
        _function(path)

    def score(self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Any:
        """Whatever the function returns for uint8 images [B, H, W, 3]; see `prdp.rewards.base.Reward`."""
        return self._function(images, prompts, metadata)


def _function(path: str) -> Any:
    """The function; None where its module needs a package that only the reward's own environment has."""
    try:
        function = locate("path", path)
    except ConfigError as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            package = str(error.__cause__.name).partition(".")[0]
            if not require(path.rpartition(".")[2], package, install=package):
                return None
        raise
    if not callable(function):
        raise ValueError(f"path={path}: is a {type(function).__name__}, must be a function")
    return function
