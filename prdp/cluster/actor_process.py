"""What every process does that works for the driver: errors that travel, modules it finds, threads it holds to."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import traceback
from collections.abc import Iterator, Sequence

from prdp.rewards.scoring import RewardError
from prdp.support.errors import UnfinishedError
from prdp.support.user_code import told


@contextlib.contextmanager
def errors_of(where: str) -> Iterator[None]:
    """Let an error travel: with its traceback as a note, and as a RuntimeError when its own type cannot be pickled.

    Errors of a reward say themselves where in its author's code they come from. `sys.exit` is an error like others:
    Ray would take it for a wish of the actor's.
    """
    try:
        yield
    except SystemExit as error:
        left = UnfinishedError(f"sys.exit({error.code!r}) was called before the work was done")
        left.add_note(f"in {where} (process {os.getpid()}):\n{traceback.format_exc()}")
        raise left from None
    except RewardError as error:
        error.add_note(f"in {where} (process {os.getpid()})")
        raise
    except Exception as error:
        error.add_note(f"in {where} (process {os.getpid()}):\n{traceback.format_exc()}")
        try:
            str(pickle.loads(pickle.dumps(error)))
        except Exception:  # noqa: BLE001 - a user's exception may break pickle, or its own text, in any way
            substitute = RuntimeError(f"{type(error).__name__}: {told(error)}")
            substitute.add_note(error.__notes__[-1])
            raise substitute from None
        raise


def import_from(paths: Sequence[str]) -> None:
    """Behind everything else: what is installed comes first."""
    sys.path.extend(path for path in paths if path not in sys.path)


def hold_torch_to(threads: int) -> None:
    """The environment already does; a factory may have changed it since."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)
