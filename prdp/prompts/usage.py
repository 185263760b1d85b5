"""Which prompts a run has used: `prompts.jsonl` in the run's folder, and the check that none was missed or repeated.

The first line tells of the source, {"rows", "pass_length", "every_prompt_once", "fingerprint", "seed", "shuffle"}; each
further one of an epoch, {"epoch", "indices"}, counted as in metrics.jsonl and taken from the images that came back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prdp.prompts.stream import PromptSource, fingerprint, pass_length, pass_order
from prdp.support.json_lines import json_line, read_json_lines
from prdp.support.storage import append, write_atomically
from prdp.types import Int64

PROMPTS_FILE = "prompts.jsonl"
_OF_SOURCE = {"rows", "pass_length", "every_prompt_once"}
_OF_EPOCH = {"epoch", "indices"}


class PromptLog:
    """Appends a line an epoch.

    Args:
        run_dir: the run's folder.
        source: what the run trains on.
        seed, shuffle: of its stream.
        resumed_epoch: lines of later epochs are dropped; None starts a new log.

    Raises:
        ValueError: the log to go on with is damaged elsewhere than in its last line.
        OSError: it cannot be written.
    """

    def __init__(
        self, run_dir: Path, source: PromptSource, seed: int, shuffle: bool, resumed_epoch: int | None = None
    ) -> None:
        self._path = Path(run_dir) / PROMPTS_FILE
        lines: list[Mapping[str, Any]] = [
            {
                "rows": len(source),
                "pass_length": pass_length(source),
                "every_prompt_once": every_prompt_once(source, seed, shuffle),
                "fingerprint": fingerprint(source),
                "seed": seed,
                "shuffle": shuffle,
            }
        ]
        if resumed_epoch is not None and self._path.exists():
            _, epochs = read_prompt_log(run_dir)
            lines += [line for line in epochs if line["epoch"] <= resumed_epoch]
        write_atomically(self._path, "".join(map(json_line, lines)).encode())

    def write(self, epoch: int, indices: Sequence[int]) -> None:
        """Note the prompts of an epoch; on disk when this returns.

        Raises:
            prdp.support.storage.StorageError: it cannot be written, on a full disk for instance; nothing of it is.
        """
        append(self._path, json_line({"epoch": epoch, "indices": list(indices)}))


@dataclass(frozen=True)
class Usage:
    """What a run's log of prompts shows.

    Attributes:
        epochs, drawn: epochs in the log and prompts drawn in them.
        rows: prompts of the source.
        whole_passes: passes that are complete in the log.
        counts: int64 [rows], how often each prompt was drawn.
        faults: one sentence for each pass in which a prompt came twice or was missed; none for a sound run.
    """

    epochs: int
    drawn: int
    rows: int
    whole_passes: int
    counts: Int64
    faults: tuple[str, ...]


def read_prompt_log(run_dir: Path | str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The first line of a run's log of prompts, and the lines of its epochs; a half-written last one is left out.

    Raises:
        FileNotFoundError: there is no log.
        ValueError: a line is damaged, by number.
    """
    path = Path(run_dir) / PROMPTS_FILE
    if not path.exists():
        raise FileNotFoundError(f"there is no log of prompts {path}")
    expected = _OF_SOURCE

    def parse(line: Any) -> dict[str, Any]:
        nonlocal expected
        missing = expected - line.keys()
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        for name in expected - {"every_prompt_once"}:
            values = line[name] if name == "indices" else [line[name]]
            least = 1 if name in ("rows", "pass_length") else 0
            if not isinstance(values, list) or not all(type(value) is int and value >= least for value in values):
                raise ValueError(f"{name} is {line[name]!r:.80}, expected whole numbers of at least {least}")
        expected = _OF_EPOCH
        return dict(line)

    lines = read_json_lines(path, parse, cut_off=True)
    if not lines:
        raise ValueError(f"{path} line 1 is damaged or missing: expected {', '.join(sorted(_OF_SOURCE))}")
    return lines[0], lines[1:]


def check_usage(run_dir: Path | str) -> Usage:
    """Count what a run has drawn, and look for epochs, prompts missed and prompts repeated within a pass.

    Passes of a weighted mixture repeat and leave out prompts by design: of these only the epochs are checked.

    Raises:
        FileNotFoundError, ValueError: as `read_prompt_log`, and for indices outside of the source.
    """
    source, epochs = read_prompt_log(run_dir)
    rows, length = int(source["rows"]), int(source["pass_length"])
    drawn = np.array([index for line in epochs for index in line["indices"]], np.int64)
    if drawn.size and (drawn.min() < 0 or drawn.max() >= rows):
        raise ValueError(f"{Path(run_dir) / PROMPTS_FILE} names prompts outside of the {rows:,} of the source")
    faults = [
        f"epoch {line['epoch']} follows epoch {before}"
        for before, line in enumerate(epochs)
        if line["epoch"] != before + 1
    ]
    if source["every_prompt_once"]:
        for number, start in enumerate(range(0, len(drawn), length), start=1):
            faults += _faults_of_pass(number, drawn[start : start + length], rows)
    counts = np.bincount(drawn, minlength=rows).astype(np.int64)
    return Usage(len(epochs), len(drawn), rows, len(drawn) // length, counts, tuple(faults))


def every_prompt_once(source: PromptSource, seed: int, shuffle: bool) -> bool:
    """Whether a pass is every prompt once, as it is but for weighted mixtures."""
    if not hasattr(source, "pass_order"):
        return True
    order = np.sort(pass_order(source, seed, 0, shuffle))
    return np.array_equal(order, np.arange(len(source)))


def _faults_of_pass(number: int, drawn: Int64, rows: int) -> list[str]:
    counts = np.bincount(drawn, minlength=rows)
    repeated = np.flatnonzero(counts > 1)
    missed = np.flatnonzero(counts == 0) if len(drawn) == rows else np.empty(0, np.int64)
    return [
        f"pass {number}: {len(which):,} prompts {what}, the first is {which[0]}"
        for which, what in ((repeated, "came more than once"), (missed, "were missed"))
        if len(which)
    ]
