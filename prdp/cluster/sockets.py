"""Where a private Ray puts its sockets, and whether their names fit; without Ray, so that it can be asked early."""

from __future__ import annotations

import os
import sys
import tempfile

from prdp.support.errors import ConfigError

LONGEST = 103 if sys.platform == "darwin" else 107
"""Bytes in the name of a Unix socket."""
_INSIDE = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""Of the longest socket, in Ray's folder for temporary files; the numbers are a time and a process id."""


def check_socket_paths() -> None:
    """Refuse a folder for temporary files in which Ray's sockets would have too long names.

    Raises:
        ConfigError: naming the variable that sets the folder, the folder, its length, and the length allowed.
    """
    variable, folder = _temporary_folder()
    length, allowed = len(os.fsencode(folder)), LONGEST - len(_INSIDE)
    if length > allowed and sys.platform != "win32":
        raise ConfigError(
            f"{variable}={folder}: has {length} bytes, must have at most {allowed} for cluster=ray: Ray keeps sockets "
            f"there, whose names may have {LONGEST} bytes; for Ray alone, set RAY_TMPDIR to a shorter one, such as /tmp"
        )


def _temporary_folder() -> tuple[str, str]:
    """The variable that sets Ray's folder for temporary files, and the folder, as Ray finds it."""
    if "RAY_TMPDIR" in os.environ:
        return "RAY_TMPDIR", os.environ["RAY_TMPDIR"]
    if sys.platform.startswith("linux") and "TMPDIR" in os.environ:
        return "TMPDIR", os.environ["TMPDIR"]
    return "RAY_TMPDIR", tempfile.gettempdir() if sys.platform == "win32" else "/tmp"
