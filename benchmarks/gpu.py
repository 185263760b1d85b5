"""Acceptance on a GPU in one command: are the numbers right, how fast is it, and does memory keep to its plan?

    python benchmarks/gpu.py                                     # one H100: below ten minutes
    python benchmarks/gpu.py --models sd15 --minutes 3
    python benchmarks/gpu.py --narrow --device cpu               # the same program on networks that a CPU can take

Released models are built in true size with random weights: Stable Diffusion 1.5, XL and 3.5 medium, FLUX.1-dev. Nothing
is downloaded, and neither Ray nor Hydra nor W&B is imported. Text encoders are left out: prompts become random numbers.
Each model is a process of its own, and each part of it has its own limit of time; what fails is a line of the report,
not its end. The report is one page in Markdown, and a line of JSON for each number.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read with the first product, for the part `repeated`
sys.path.insert(0, str(Path(__file__).parent))

MODELS = ("sd15", "sdxl", "sd35_medium", "flux_dev")
SHARES = {"sd15": 0.24, "sdxl": 0.24, "sd35_medium": 0.3, "flux_dev": 0.22}
"""Of the time that is left, beside those of the models that follow."""
FOREIGN = ("ray", "hydra", "wandb")
"""What may not be imported."""
BROKEN = 75
"""Exit code of a process whose device answers nothing any more: the parts that are left need another process."""

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write the report; 1 where a check failed."""
    options = parsed(arguments)
    if options.one:
        measure(options.one, options)
        return 0
    lines = Path(f"{options.out}.jsonl")
    lines.parent.mkdir(parents=True, exist_ok=True)
    lines.write_text("")
    until = time.time() + 60.0 * options.minutes
    for number, name in enumerate(options.models):
        start(name, options, limit(options.models[number:], until - time.time()), lines)
        print(f"{name}: done", flush=True)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    Path(f"{options.out}.md").write_text(page(rows, machine(options.device)))
    print(f"{options.out}.md, {lines}")
    return int(any(row.get("right") is False for row in rows))


def limit(models: Sequence[str], left: float) -> float:
    """Seconds for the first of these models; what it does not take is for those that follow."""
    return left * SHARES[models[0]] / sum(SHARES[name] for name in models)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--parts", nargs="*", help="only these, such as numbers or speed")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--narrow", action="store_true", help="layouts with narrow layers, for a CPU")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of what is timed (%(default)s)")
    parser.add_argument("--compiler", default="inductor", help="backend of torch.compile (%(default)s)")
    parser.add_argument("--out", default="gpu_report", help="of the report, without .md (%(default)s)")
    parser.add_argument("--one", choices=MODELS, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def start(name: str, options: argparse.Namespace, limit: float, lines: Path) -> None:
    """Measure a model in a process of its own, and another for each part that wants one.

    A process that ends badly, or never, is a row too.
    """
    from gpu_parts import APART, PARTS, parts_of

    until = time.time() + limit
    chosen = [part for part in parts_of(name) if not options.parts or part in options.parts]
    apart = [part for part in chosen if part in APART]
    together = [part for part in chosen if part not in APART]
    if together:
        kept = sum(PARTS[part][1] for part in apart)
        run_parts(name, together, options, max(until - kept, time.time() + limit / 2), lines, {})
    for part in apart:
        run_parts(name, [part], options, until, lines, APART[part])


def run_parts(
    name: str, parts: Sequence[str], options: argparse.Namespace, until: float, lines: Path, environment: dict[str, str]
) -> None:
    """Measure parts of a model in a process with this environment, and in others while devices break in them."""
    command = [sys.executable, __file__, "--one", name, "--until", str(until), "--out", options.out]
    command += ["--device", options.device, "--repeats", str(options.repeats), "--compiler", options.compiler]
    command += ["--narrow"] * options.narrow
    begun, left, words = time.time(), list(parts), ""
    code: int | None = BROKEN
    while left and code == BROKEN and time.time() < until:
        try:
            done = subprocess.run(
                [*command, "--parts", *left], env=os.environ | environment, stderr=subprocess.PIPE, text=True,
                timeout=until - time.time() + 30.0,
            )  # fmt: skip
            code, words = done.returncode, done.stderr
        except subprocess.TimeoutExpired as error:
            code, words = None, (error.stderr or b"").decode(errors="replace")
        sys.stderr.write(words)
        measured = {row["part"] for row in map(json.loads, lines.read_text().splitlines()) if row["model"] == name}
        left = [part for part in left if part not in measured]
    if code not in (0, BROKEN):
        wrong = f"did not end within {until - begun:.0f} s" if code is None else f"ended with {code}"
        append(lines, [{"model": name, "part": "all", "failed": f"{wrong}: {(words.splitlines() or [''])[-1]}"[:300]}])
    elif left:
        append(lines, [{"model": name, "part": part, "failed": "no time is left"} for part in left])


def measure(name: str, options: argparse.Namespace) -> None:
    """All parts of a model, a line for each number as soon as it is there."""
    from gpu_bench import Bench
    from gpu_models import Place
    from gpu_parts import PARTS, parts_of

    lines = Path(f"{options.out}.jsonl")
    until = options.until or time.time() + 60.0 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Place.of(name, Path(folder), options.device, options.narrow), options.repeats, options.compiler)
        for part in parts_of(name):
            if options.parts and part not in options.parts:
                continue
            work, seconds = PARTS[part]
            begun = time.perf_counter()
            row: Row = {"model": name, "part": part}
            try:
                with within(min(seconds, until - time.time())):
                    for one in work(bench):
                        found = {"what": one.what, "value": one.value, "unit": one.unit, "note": one.note}
                        check = {} if one.bound is None else {"bound": one.bound, "right": one.right}
                        append(lines, [{**row, **found, **check}])
            except Exception as error:  # noqa: BLE001
                traceback.print_exc()
                words = str(error).splitlines() or [""]
                append(lines, [{**row, "failed": f"{type(error).__name__}: {words[0][:200]}"}])
                if not bench.answers():
                    sys.exit(BROKEN)
            bench.free()  # of what an error has held, too, now that it is gone
            append(lines, [{**row, "seconds": time.perf_counter() - begun}])
    imported = [one for one in FOREIGN if one in sys.modules]
    append(lines, [{"model": name, "part": "imports", "foreign": imported, "right": not imported}])


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError once so many seconds are over."""
    if seconds <= 0:
        raise TimeoutError("no time is left")

    def late(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def append(file: Path, rows: Iterable[Row]) -> None:
    """Rows as lines of JSON."""
    with file.open("a") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


def machine(device: str) -> dict[str, str]:
    """What it was measured on."""
    found = {name: version(name) for name in ("torch", "diffusers")} | {"python": platform.python_version()}
    # Above 2 something else was at work, and times say little.
    found["load of the machine"] = f"{os.getloadavg()[2]:.1f}"
    if device.startswith("cuda"):
        import torch

        properties = torch.cuda.get_device_properties(torch.device(device))
        found |= {"GPU": properties.name, "memory": f"{properties.total_memory / 2**30:.0f} GiB"}
        found["CUDA"] = str(torch.version.cuda)
    else:
        found["processor"] = platform.processor() or platform.machine()
    return found


def page(rows: Sequence[Row], about: dict[str, str]) -> str:
    """The report in Markdown."""
    checks = [row for row in rows if row.get("right") is not None]
    wrong = [row for row in checks if not row["right"]]
    failed = [row for row in rows if "failed" in row]
    lines = ["# Acceptance on a GPU", "", ", ".join(f"{key} {value}" for key, value in about.items()), ""]
    lines += [
        f"{len(checks) - len(wrong)} of {len(checks)} checks hold; {len(failed)} parts could not be measured.",
        "",
    ]
    lines += [f"* **WRONG**: {row['model']}, {row['part']}: {row.get('what', row.get('foreign'))}" for row in wrong]
    lines += [f"* not measured: {row['model']}, {row['part']}: {row['failed']}" for row in failed]
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name]
        taken = sum(row.get("seconds", 0.0) for row in own)
        lines += ["", f"## {name}", "", f"Measured in {taken:.0f} s.", "", "| part | what | value | check | |"]
        lines += ["|---|---|---|---|---|"]
        lines += [
            f"| {row['part']} | {row['what']} | {shown(row['value'])} {row['unit']} | {check(row)} | {row['note']} |"
            for row in own
            if "what" in row
        ]
    return "\n".join(lines) + "\n"


def shown(value: float) -> str:
    """A number for people."""
    return "-" if math.isnan(value) else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def check(row: Row) -> str:
    """Whether a bound holds."""
    return "" if "bound" not in row else f"{'ok' if row['right'] else '**WRONG**'}, at most {row['bound']:g}"


if __name__ == "__main__":
    sys.exit(main())
