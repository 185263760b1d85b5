"""What a reward is, and the check that every answer of one goes through."""

from __future__ import annotations

import numbers
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from prdp.rewards.names import check_names
from prdp.types import Float64, UInt8

FREE_ARGUMENTS = (
    "asks",
    "at_once",
    "backoff_seconds",
    "batch_size",
    "cache",
    "device",
    "key_variable",
    "max_request_mib",
    "max_requests",
    "memory_mib",
    "retries",
    "timeout_seconds",
    "token_variable",
    "url",
)
"""Arguments of rewards that say where and how fast they are scored; which reward it is, its name and version tell."""


class Reward(Protocol):
    """A black-box scorer of images.

    Attributes:
        name: as it appears in logs and errors.
        version: changes whenever the same image and prompt would score differently.

    What `score` gets is the reward's own: images are read-only, and changes to prompts and metadata reach nobody else.

    A reward may have more members. The class method `check(**arguments) -> None` is called with the arguments of
    the constructor before anything long starts, and raises ValueError or FileNotFoundError for weights or packages that
    are missing. The static methods `check_prompt(prompt, metadata)` and `check_size(height, width)` raise ValueError
    for prompts and for sizes of pictures that it cannot score. The method `identity()` answers what `identity_of`
    would, for a reward that is made of others. `retries_itself = True` keeps a run from asking it again after an error
    that may pass. The class attribute `sub_score_names` says which sub-scores it always gives, so that a name can be
    checked before a run starts. `waits_seconds` is how long one call may wait for others, such as a server that is
    away, before it raises: so much longer before it counts as hung.
    """

    name: str
    version: str

    def score(self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Any:
        """Score uint8 images [B, H, W, 3]: an array [B], or a pair (array [B], {sub-score name: array [B]})."""
        ...


def identity_of(reward: Reward) -> dict[str, Any]:
    """What logs and checkpoints say about a reward: {"name", "version"}, and "terms" where it has some."""
    identity = getattr(reward, "identity", None)
    return dict(identity()) if callable(identity) else {"name": str(reward.name), "version": str(reward.version)}


def waits_of(reward: Reward) -> float:
    """Seconds that one call may wait for others; 0 for a reward that does not tell."""
    return float(getattr(reward, "waits_seconds", 0.0))


def checked_scores(
    reward: str, result: Any, count: int, where: str = "", composite: bool = False
) -> tuple[Float64, dict[str, Float64]]:
    """Validate what a reward returned: an array [count], or a pair (array [count], {name: array [count]}).

    Args:
        reward: for messages, such as "reward 'mine'".
        composite: see `prdp.rewards.names.check_names`.

    Raises:
        ValueError: naming the reward, the place and what was wrong: shape, dtype, NaN or infinity in the rewards, a
            sub-score's name.
    """
    place = f" ({where})" if where else ""
    with_parts = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)
    rewards, parts = result if with_parts else (result, {})
    total = _score_array(f"{reward}{place}", rewards, count)
    bad = np.flatnonzero(~np.isfinite(total))
    if bad.size:
        raise ValueError(
            f"{reward}{place} returned {total[bad[0]]} for image {bad[0]} of {count} "
            f"({bad.size} not finite): rewards must be finite numbers"
        )
    check_names(f"{reward}{place}", parts, composite)
    return total, {
        name: _score_array(f"sub-score '{name}' of {reward}{place}", values, count) for name, values in parts.items()
    }


def _score_array(what: str, values: Any, count: int) -> Float64:
    expected = f"expected an array of {count} numbers, one per image"
    if values is None:
        raise ValueError(f"{what} returned None, {expected}")
    entries = values if isinstance(values, list | tuple) else [values]
    if any(getattr(one, "requires_grad", False) is True for one in entries):
        raise ValueError(
            f"{what} returned a tensor that requires grad, {expected}: score within torch.no_grad(), or return "
            "scores.detach()"
        )
    try:
        array = np.asarray(values)
        if array.dtype == object and all(isinstance(one, numbers.Real) for one in array.flat):
            array = array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{what} is not an array of numbers: {error}") from None
    if array.dtype.kind not in "iufb":
        raise ValueError(f"{what} is not an array of numbers: it holds {_held(array)}; {expected}")
    if array.shape != (count,):
        raise ValueError(f"{what} has shape {array.shape}, expected ({count},): one number per image")
    return array.astype(np.float64)


def _held(array: np.ndarray) -> str:
    """What an array that is not of numbers is of, by its first odd entry."""
    kinds = {"c": "complex numbers", "U": "texts", "S": "bytes"}
    if array.dtype.kind in kinds:
        return kinds[array.dtype.kind]
    odd = next((one for one in array.flat if not isinstance(one, numbers.Real)), None)
    return f"entries such as {reprlib.repr(odd)}" if array.dtype == object else f"entries of type {array.dtype}"
