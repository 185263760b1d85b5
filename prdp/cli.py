"""`prdp <command> [arguments]`: finds the command, and turns its errors into messages and exit codes.

Exit codes: 0 done, 1 a fault (with its traceback), 2 a mistake in what the user gave, 75 a cluster that was lost,
130 interrupted, 141 nobody reads the output any more (as in `prdp status | head`), 143 ended by SIGTERM. After the last
four a new start goes on where it ended. Nothing but work that is done ends with 0; docs/watching.md tells more.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence

from prdp import __version__
from prdp.support.errors import ResumableError, UnfinishedError, UserError
from prdp.support.interruption import (
    EXIT_CODE,
    INTERRUPTED_EXIT_CODE,
    LOST_EXIT_CODE,
    TerminatedError,
    interruptions_raised,
)
from prdp.support.printable import make_output_printable, printable
from prdp.support.silent_end import NoSilentSuccess

COMMANDS = {
    "train": ("prdp.commands.train:train", "fine-tune a model on a reward; -m sweeps"),
    "validate": ("prdp.commands.train:validate", "check a configuration and show its size, without running it"),
    "pretrain": ("prdp.commands.pretrain:main", "train the embedded tiny pipeline from scratch"),
    "evaluate": ("prdp.commands.evaluate:main", "judge finished models side by side on held-out prompts"),
    "generate": ("prdp.commands.generate:main", "draw a set of images that training reads"),
    "merge": ("prdp.commands.merge:main", "merge LoRA experts of one base into one file"),
    "gate": ("prdp.commands.gate:main", "put experts into one model, weighted by gates that learn"),
    "distill": ("prdp.commands.distill:main", "distill a student that draws in few steps"),
    "calibrate": ("prdp.commands.calibrate:main", "a student that asks its teacher where its images score low"),
    "export": ("prdp.commands.export:main", "write a run's weights, with a model card, in the format you want"),
    "collm": ("prdp.commands.collm:main", "two language models that write together, a small one and its assistant"),
    "reward-server": ("prdp.commands.reward_server:main", "serve a reward over HTTP, for reward=remote"),
    "status": ("prdp.commands.status:main", "how jobs stand: epoch, rates, rewards, actors, the last fault"),
    "watch": ("prdp.commands.watch:main", "a page about runs as they go on, live in a browser"),
    "supervise": ("prdp.commands.supervise:main", "run `train` and start it again when it is killed"),
    "report": ("prdp.commands.train:report", "write the report of a run anew"),
    "wandb-layout": ("prdp.tracking.wandb_layout:main", "lay a W&B project's panels out"),
    "prompts": ("prdp.commands.prompts:main", "write, inspect, clean, split and check prompt sets"),
}
"""Name -> (function that takes the arguments and returns an exit code or None, one line of help)."""
PIPE_EXIT_CODE = 141
"""128 + SIGPIPE, as shells tell of commands that this signal ended."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code. Faults of the program are raised.

    Raises:
        UnfinishedError: somebody other than the parser of the arguments called `sys.exit`.
    """
    with contextlib.ExitStack() as stack:
        end = stack.enter_context(NoSilentSuccess())
        if arguments is None:
            stack.pop_all()  # held until the process ends: what is registered for then may call `os._exit` too
        try:
            end.code = _flushed(arguments)
        except SystemExit as error:
            end.code = error.code if isinstance(error.code, int) else int(error.code is not None)
            raise
        if arguments is None and end.code in (INTERRUPTED_EXIT_CODE, EXIT_CODE):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process ends; nothing is left to interrupt
        return end.code


def _flushed(arguments: Sequence[str] | None) -> int:
    try:
        try:
            return _run(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        if not _is_output_gone():
            raise
        return PIPE_EXIT_CODE


def _run(arguments: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"prdp {__version__}")
        return 0
    make_output_printable()
    name, *rest = words
    if name not in COMMANDS:
        from prdp.support.suggest import did_you_mean

        known = ", ".join(COMMANDS)
        _tell(f"prdp: there is no command '{name}'; commands: {known}{did_you_mean(name, COMMANDS)}")
        return 2
    with interruptions_raised():
        return _run_command(name, rest)


def _run_command(name: str, words: Sequence[str]) -> int:
    module, _, function = COMMANDS[name][0].partition(":")
    try:
        return getattr(importlib.import_module(module), function)(words) or 0
    except SystemExit as error:
        if _by_argparse(error):
            raise
        raise UnfinishedError(f"prdp {name}: sys.exit({error.code!r}) was called before the work was done") from error
    except UserError as error:
        _tell("\n".join([f"prdp {name}: {error}", *getattr(error, "__notes__", [])]))
        return 2
    except ResumableError as error:
        _tell("\n".join([f"prdp {name}: {error}", *getattr(error, "__notes__", [])]))
        return LOST_EXIT_CODE
    except KeyboardInterrupt as error:
        _tell("; ".join([f"prdp {name}: interrupted", *getattr(error, "__notes__", [])]))
        return INTERRUPTED_EXIT_CODE
    except TerminatedError as error:
        _tell("; ".join([f"prdp {name}: ended by SIGTERM", *getattr(error, "__notes__", [])]))
        return EXIT_CODE


def _is_output_gone() -> bool:
    """Whether nobody reads standard output or error any more; such a stream then leads nowhere, so that nothing fails
    at the interpreter's end either.
    """
    gone = False
    for stream in (sys.stdout, sys.stderr):
        try:
            file = stream.fileno()
        except (AttributeError, OSError, ValueError):
            continue  # replaced by something that is no file
        poll = select.poll()
        poll.register(file, select.POLLOUT)
        if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
            gone = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, file)
            os.close(nowhere)
    return gone


def _by_argparse(error: SystemExit) -> bool:
    """Whether the arguments were refused, or asked for help; wandb may have put a function of its own over sys.exit."""
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(code.co_filename == argparse.__file__ and code.co_name == "exit" for code in codes)


def _tell(text: str) -> None:
    """Errors quote prompts, names and files of others."""
    print(printable(text, lines=True), file=sys.stderr)


def help_text() -> str:
    """What `prdp --help` prints."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items())
    return (
        "prdp fine-tunes text-to-image diffusion models on black-box rewards.\n\n"
        f"usage: prdp <command> [arguments]\n\ncommands:\n{commands}\n\n"
        "Start with:  prdp train experiment=shapes_demo\n"
        "More:        prdp <command> --help"
    )
