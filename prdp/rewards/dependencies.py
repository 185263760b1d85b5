"""What a reward needs besides the package's own dependencies: found missing at the start, with what to install."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from contextvars import ContextVar

_elsewhere: ContextVar[bool] = ContextVar("dependencies_elsewhere", default=False)


class MissingDependencyError(ValueError):
    """A package that a reward needs is not installed; the message says what to install."""


def require(reward: str, *modules: str, install: str) -> bool:
    """Check that top-level modules can be imported, without importing them.

    True when they can; False, unchecked, inside `dependencies_elsewhere`.

    Args:
        reward: its name, for the message.
        modules: such as 'pyiqa'.
        install: what pip is to install, such as 'prdp[image_quality]' or 'pyiqa==0.1.14'.

    Raises:
        MissingDependencyError: naming the reward, the modules that are missing and both cures.
    """
    if are_elsewhere():
        return False
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingDependencyError(
            f"reward '{reward}' needs {', '.join(missing)}, which is not installed: pip install '{install}'; or, when "
            "its dependencies fight those of the trainer, give the reward actors an environment of their own: "
            "cluster=ray cluster.reward_environment=<requirements file, virtual environment or interpreter>"
        )
    return True


def are_elsewhere() -> bool:
    """Whether this is inside `dependencies_elsewhere`."""
    return _elsewhere.get()


@contextlib.contextmanager
def dependencies_elsewhere() -> Iterator[None]:
    """Within the block `require` passes: the reward will run in another environment, which this process cannot see."""
    token = _elsewhere.set(True)
    try:
        yield
    finally:
        _elsewhere.reset(token)
