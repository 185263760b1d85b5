"""What a large prompt set costs: building its table, opening it, reading from it, shuffling it.

    python benchmarks/prompts.py [--prompts 1000000]

Opening and reading run in a process of their own, that has built nothing. Memory is what the process holds more than
before: RssAnon is its own, RssFile are pages of the table and of libraries, which the system takes back when it needs
room.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from prdp.prompts.json_file import JsonFilePrompts
from prdp.prompts.stream import PromptStream

WORDS = ("red", "old", "wooden", "cat", "castle", "river", "painting", "of", "a", "under", "stormy", "sky", "with")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--open", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        open_and_read(options.open)
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PRDP_CACHE"] = folder
        file = Path(folder) / "prompts.jsonl"
        write_prompts(file, options.prompts)
        start = now()
        source = JsonFilePrompts(str(file), category_column="style")
        print(
            f"build: {spent(start)} for {options.prompts:,} prompts, "
            f"{file.stat().st_size / 1e6:.0f} MB of JSON lines; table of {source.path.stat().st_size / 1e6:.0f} MB",
            flush=True,
        )
        subprocess.run([sys.executable, __file__, "--open", str(file)], check=True)


def open_and_read(path: str) -> None:
    """Print what an already built table costs a fresh process."""
    marks = [(now(), memory())]
    import pyarrow.ipc  # noqa: F401

    marks.append((now(), memory()))
    source = JsonFilePrompts(path, category_column="style")
    marks.append((now(), memory()))
    stream = PromptStream(source, seed=0)
    stream.next(1, 0)
    marks.append((now(), memory()))
    stream.next(10_000, 0)
    marks.append((now(), memory()))
    names = ("import of pyarrow", "open", "permutation of a pass", "10,000 shuffled prompts")
    for name, (start, before), (end, after) in zip(names, marks[:-1], marks[1:], strict=True):
        report(name, start, end, before, after)
    report("all of it", marks[0][0], marks[-1][0], marks[0][1], marks[-1][1])


def write_prompts(file: Path, count: int) -> None:
    """Different prompts of 5 to 20 words, with a category."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(4, 20, count)
    words = generator.integers(0, len(WORDS), (count, 20))
    with file.open("w", encoding="utf-8") as out:
        for number in range(count):
            text = " ".join(WORDS[word] for word in words[number, : lengths[number]])
            out.write(json.dumps({"prompt": f"{text} {number}", "style": f"style {number % 4}"}) + "\n")


def memory() -> dict[str, float]:
    """RssAnon and RssFile of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        name: float(line.split()[1]) / 1000
        for line in lines
        for name in ("RssAnon", "RssFile")
        if line.startswith(f"{name}:")
    }


def now() -> tuple[float, float]:
    """Wall time and processor time of this process, in seconds."""
    return time.perf_counter(), time.process_time()


def spent(start: tuple[float, float], end: tuple[float, float] | None = None) -> str:
    """'1.20 s (1.10 s of processor time)' between two moments; the second is now by default."""
    wall, processor = (after - before for before, after in zip(start, end or now(), strict=True))
    return f"{wall:.3f} s ({processor:.3f} s of processor time)"


def report(
    what: str,
    start: tuple[float, float],
    end: tuple[float, float],
    before: dict[str, float],
    after: dict[str, float],
) -> None:
    """One line of the result."""
    added = ", ".join(f"{name} +{after[name] - before[name]:.0f} MB" for name in after)
    print(f"{what}: {spent(start, end)}, {added}", flush=True)


if __name__ == "__main__":
    main()
