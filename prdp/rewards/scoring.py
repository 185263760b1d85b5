"""Asking a reward: what it gets, what becomes of the errors it raises, and which of those may pass."""

from __future__ import annotations

import contextlib
import http.client
import re
import subprocess
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prdp.rewards.base import Reward, checked_scores, identity_of
from prdp.support.errors import ResumableError, UserError
from prdp.support.interruption import TerminatedError
from prdp.support.user_code import own_frames, told
from prdp.types import Float64, UInt8

_LONGEST = 2000
_FOR_GOOD = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_PASSING = (OSError, MemoryError, http.client.HTTPException, subprocess.TimeoutExpired)
_PASSING_NAMES = re.compile(
    "Timeout|TimedOut|Connect|Network|Transport|RateLimit|TooManyRequests|Unavailable|Transient|Temporar|OutOfMemory"
)
_PASSING_STATUS = (408, 425, 429)
_OUT_OF_MEMORY = re.compile("out of memory|RESOURCE_EXHAUSTED", re.IGNORECASE)

# Images are read-only, and no one else's: what torch warns of on every such array cannot happen.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)


class RewardError(ValueError):
    """A reward gave no scores; the message names the reward and the place, and its first line the error."""


class RewardFaultError(RewardError, UserError):
    """A fault of the reward, which would come again: it is not asked again."""


class RewardUnavailableError(RewardError, ResumableError):
    """An error that may pass, such as a time-out."""


def scored(
    reward: Reward,
    images: UInt8,
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    where: str = "",
    what: str = "",
) -> tuple[Float64, dict[str, Float64]]:
    """Ask a reward once for the scores of uint8 images [n, H, W, 3]: float64 [n], and {sub-score: float64 [n]}.

    The reward gets copies, so that whatever it does to them reaches nobody else; the images' are read-only, so that it
    is told.

    Args:
        where: the place, for messages, such as 'epoch 3, prompts 8 to 11'.
        what: how messages call the reward, when not by its own name.

    Raises:
        RewardFaultError: the reward raised, called sys.exit, or answered with something else than scores.
        RewardUnavailableError: it raised what may pass, see `may_pass`.
    """
    own = images.copy()
    own.flags.writeable = False
    called = f"{what or _called(reward)}{f' ({where})' if where else ''}"
    with errors_named(called):
        result = reward.score(own, list(prompts), [_copied(one) for one in metadata])
    composite = "terms" in identity_of(reward)
    try:
        return checked_scores(what or _called(reward), result, len(images), where, composite)
    except ValueError as error:
        raise RewardFaultError(str(error)) from None


@contextlib.contextmanager
def errors_named(called: str, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn what a reward raises in the block into a `RewardError` that tells the reward and its author's own lines.

    Args:
        called: the reward, and perhaps the place, such as "reward 'mine' (epoch 3, prompts 8 to 11)".
        but: errors that pass as they are.
    """
    try:
        yield
    except but:
        raise
    except RewardError as error:
        raise type(error)(f"{called}: {error}") from error
    except SystemExit as error:
        raise RewardFaultError(
            f"{called} calls sys.exit({error.code!r}), which would end the run: raise an error instead"
            f"{own_frames(error)}"
        ) from error
    except Exception as error:
        if isinstance(error, ValueError) and "read-only" in told(error):
            raise RewardFaultError(
                f"{called} writes into its images, which are read-only: copy them first, images = images.copy() "
                f"({told(error)}){own_frames(error)}"
            ) from None
        kind = RewardUnavailableError if may_pass(error) else RewardFaultError
        text = told(error)
        shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
        raise kind(f"{called} raised {type(error).__name__}: {shown}{own_frames(error)}") from error
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | TerminatedError):
            raise
        # asyncio.CancelledError, say: it is no Exception, and would be taken for the end of the process.
        raise RewardFaultError(f"{called} raised {type(error).__name__}: {told(error)}{own_frames(error)}") from error


def may_pass(error: BaseException) -> bool:
    """Whether the same call may go well in a moment.

    These may: errors of the operating system, connections and time-outs among them, but for files that are not there
    or not allowed; memory that ran out, the GPU's too; HTTP answers 408, 425, 429 and from 500 on; and errors whose
    type is named after a time-out, a connection or a rate limit, as clients of services call theirs. All others are
    taken for faults: a plain RuntimeError mostly is a wrong shape, or a GPU that this process has lost for good.
    """
    status = _http_status(error)
    if status is not None:
        return status >= 500 or status in _PASSING_STATUS
    if isinstance(error, _FOR_GOOD):
        return False
    if isinstance(error, _PASSING) or any(_PASSING_NAMES.search(kind.__name__) for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(told(error)))


def root(error: BaseException) -> BaseException | None:
    """What a reward raised, beneath the errors that name it; None for an answer that was no scores."""
    found: BaseException | None = error
    while isinstance(found, RewardError):
        found = found.__cause__
    return found


def first_line(error: BaseException | None) -> str:
    """A message without the lines of code below it."""
    return str(error).partition("\n")[0]


def _called(reward: Reward) -> str:
    return f"reward '{reward.name}'"


def _http_status(error: BaseException) -> int | None:
    """The status of the answer that an HTTP client's error is about: requests', httpx', urllib's, aiohttp's."""
    holders = (getattr(error, "response", None), error)
    found = (getattr(holder, name, None) for holder in holders for name in ("status_code", "status", "code"))
    return next((value for value in found if type(value) is int and 400 <= value < 600), None)


def _copied(value: Any) -> Any:
    """Plain containers anew, all the way down; what is in them as it is."""
    if isinstance(value, Mapping):
        return {key: _copied(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_copied(one) for one in value]
    if isinstance(value, tuple):
        return tuple(_copied(one) for one in value)
    return value.copy() if isinstance(value, np.ndarray | set) else value
