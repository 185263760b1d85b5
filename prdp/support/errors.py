"""Errors of the user's making: the command line shows their message without a traceback and exits with 2."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prdp.support.user_code import told


class UserError(Exception):
    """Marks an error that the user can mend; the message says what was given and what was expected."""


class ConfigError(UserError, ValueError):
    """A key, value or combination in the configuration that cannot run."""


class StartError(UserError, ValueError):
    """Something the run needs is missing or unusable, found before the first epoch."""


class UnfinishedError(RuntimeError):
    """Somebody called `sys.exit` before the work was done: a fault, whatever code was given."""


class ResumableError(Exception):
    """Marks an error that may pass, such as a lost cluster: what is finished is kept, and a new start goes on."""


@contextlib.contextmanager
def start_up_checks(where: str = "") -> Iterator[None]:
    """Turn ValueError and FileNotFoundError of the block into `StartError`, with the original as the cause.

    For the part of a command that builds what it was configured with: models, rewards, prompts, checkpoints. After
    that a ValueError is a fault of the program and keeps its traceback.

    Args:
        where: put before the message, such as a key.
    """
    prefix = f"{where}: " if where else ""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if isinstance(error, UserError) and not prefix:
            raise
        raise StartError(f"{prefix}{told(error)}") from error
