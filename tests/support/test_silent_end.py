"""Who is ended without a word is spoken for; who leaves in any other way is not."""

from __future__ import annotations

import os
import posix
import subprocess
import sys

import pytest

from prdp.support.silent_end import NoSilentSuccess

SCRIPT = """\
import os, signal, sys
sys.path[:0] = sys.argv[1:2]
from prdp.support.silent_end import NoSilentSuccess, told_when_silent
with told_when_silent("gone: it's $HOME %s"), NoSilentSuccess():
    exec(sys.argv[2])
"""


@pytest.mark.parametrize(
    ("end", "code", "told"),
    [
        ("os._exit(1)", 1, True),
        ("os._exit(0)", 1, True),
        ("from os import _exit; _exit(0)", 1, True),
        ("import posix; posix._exit(0)", 1, True),
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


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit codes with which this process would have been ended."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(posix, "_exit", codes.append)
    return codes


def test_only_a_known_outcome_of_0_lets_0_through(left: list[int]) -> None:
    plain = os._exit
    with NoSilentSuccess() as end:
        bound = posix._exit
        for end.code in (1, 75, 0):
            bound(0)
            bound(3)
    bound(0)
    assert (os._exit, posix._exit) == (plain, plain)
    assert left == [1, 3, 75, 3, 0, 3, 0]


COMMAND = """\
import sys, types
code, sys.argv[1:] = sys.argv[1], ["train"]
def run(words):
    exec(code, {})
    raise RuntimeError("a fault")
sys.modules["fake"] = types.SimpleNamespace(run=run)
from prdp import cli
cli.COMMANDS["train"] = ("fake:run", "")
sys.exit(cli.main())
"""


@pytest.mark.parametrize(
    ("code", "expected", "at_its_end"),
    [
        ("from os import _exit; _exit(0)", 1, False),
        ("from posix import _exit; _exit(3)", 3, False),
        ("import atexit; from os import _exit; atexit.register(_exit, 0)", 1, True),
        ("import atexit; from os import _exit; atexit.register(_exit, 3)", 3, True),
    ],
)
def test_a_command_is_guarded_from_before_its_imports_to_the_end_of_the_process(
    code: str, expected: int, at_its_end: bool
) -> None:
    done = subprocess.run([sys.executable, "-c", COMMAND, code], capture_output=True, text=True)
    assert (done.returncode, "RuntimeError: a fault" in done.stderr) == (expected, at_its_end)
