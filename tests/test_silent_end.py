"""Who is ended without a word is spoken for; who leaves in any other way is not."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """\
import os, signal, sys
sys.path[:0] = sys.argv[1:2]
from prdp.silent_end import no_silent_success, told_when_silent
with told_when_silent("gone: it's $HOME %s"), no_silent_success():
    exec(sys.argv[2])
"""


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [
        ("os._exit(1)", 1, True),
        ("os._exit(0)", 1, True),
        ("child = os.fork(); child or os._exit(0); sys.exit(os.waitpid(child, 0)[1])", 0, False),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9, True),
        ("pass", 0, False),
        ("sys.exit(3)", 3, False),
    ],
)
def test_a_silent_end_is_told(end: str, code: int, told: bool) -> None:
    import prdp

    root = prdp.__path__[0].rpartition("/")[0]
    done = subprocess.run([sys.executable, "-S", "-E", "-c", SCRIPT, root, end], capture_output=True, text=True)
    assert done.returncode == code
    assert done.stderr == ("gone: it's $HOME %s\n" if told else "")
    assert done.stdout == ""
