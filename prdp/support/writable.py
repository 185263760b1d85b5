"""Whether a folder can be made and written, found out before anything long starts."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from prdp.support.errors import ConfigError
from prdp.support.storage import TEMPORARY


def as_given(key: str, folder: Path) -> str:
    """A folder as a command line names it: 'output_dir=runs/a', or '--output runs/a'."""
    return f"{key} {folder}" if key.startswith("--") else f"{key}={folder}"


def check_can_be_written(key: str, folder: Path) -> None:
    """Refuse a folder that cannot be made or written; nothing is left behind.

    Args:
        key: what named it, for the message: 'output_dir' or '--output'.
        folder: it need not exist.

    Raises:
        ConfigError: naming the key, the place where it fails and why.
    """
    told = as_given(key, folder)
    for place in (folder, *folder.parents):
        try:
            os.stat(place)
        except FileNotFoundError:
            continue
        except OSError as error:
            if not isinstance(error, NotADirectoryError):
                raise ConfigError(f"{told}: {error.strerror}") from None
            continue
        if not place.is_dir():
            raise ConfigError(f"{told}: {place} is a file, must be a folder")
        if not os.access(place, os.W_OK | os.X_OK):
            raise ConfigError(f"{told}: {place} cannot be written: its owner, mode or disk forbids it")
        try:  # modes tell nothing of /proc, /sys and some network disks
            os.rmdir(tempfile.mkdtemp(prefix=TEMPORARY, dir=place))
        except OSError as error:
            raise ConfigError(f"{told}: no folder can be made in {place}: {error.strerror}") from None
        return
