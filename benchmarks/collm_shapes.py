"""Co-LLM on the embedded task, from untrained models to a table and rate-quality curves; seed by seed.

    python benchmarks/collm_shapes.py docs/results/collm_shapes 0 1 2

Appends a line for every measurement to OUT.jsonl, draws OUT.svg, and prints the tables in Markdown. A seed takes less
than a minute of one core. Seeds whose measurements the file has are not run again.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

from study_tables import table

from prdp.calibration import fit
from prdp.language import learning
from prdp.language.calibrating import Point, best, curve, exact, rate_of, scores_of
from prdp.language.choosing import SCORES, Above, AtRandom, Constant, Rule
from prdp.language.comparison import row
from prdp.language.decoding import Answer, Decoding, Pair, RuleFor, decode
from prdp.language.opening import open_pair
from prdp.language.records import encode_all, read_records
from prdp.language.settings import (
    AssistantConfig,
    DecodeConfig,
    InitConfig,
    PretrainConfig,
    ScoreConfig,
    TrainConfig,
    TrainingConfig,
)
from prdp.language.shapes_task import without_marks
from prdp.prompt_writers.rouge import SimilarityPool
from prdp.reports.charts import Series, curve_svg
from prdp.support.storage import write_atomically
from prdp.worlds.shapes.grammar import parse

RATES = (0.1, 0.2, 0.3, 0.4, 0.5)
HOW = Decoding(max_new_tokens=32, batch_size=100)
SAMPLED = Decoding(max_new_tokens=32, batch_size=100, temperature=1.0)
INIT = InitConfig(steps=80, row_learning_rate=2e-2)
LEARNING = TrainingConfig(steps=60, learning_rate=3e-4, row_learning_rate=1e-2, cost=0.3)


def main() -> None:
    out, *seeds = sys.argv[1:]
    file = Path(out).with_suffix(".jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for seed in map(int, seeds):
        if any(line["seed"] == seed for line in lines):
            continue
        begun, found = time.process_time(), []
        with tempfile.TemporaryDirectory() as folder:
            for one in measured(Path(folder), seed):
                found.append({"seed": seed, **one})
                print(found[-1], flush=True)
        found.append({"seed": seed, "what": "seconds", "cpu": round(time.process_time() - begun, 1)})
        with file.open("a", encoding="utf-8") as opened:
            opened.writelines(json.dumps(one) + "\n" for one in found)
        lines += found
    print(tables(lines))
    write_atomically(file.with_suffix(".svg"), figure(lines).encode())


def measured(folder: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Train everything of a seed in a folder; what was measured on test records."""
    task, pair = folder / "task", folder / "pair"
    learning.pretrain(PretrainConfig(seed=seed, output_dir=str(task)))
    assistant = AssistantConfig(path=str(task / "assistant"), device="cpu")
    data = [str(task / "train.jsonl")]
    learning.score(ScoreConfig(assistant=assistant, data=data, batch_size=64, output_dir=str(folder / "scores")))
    train = TrainConfig(
        base=str(task / "base"), scores=str(folder / "scores"), training=LEARNING, init=INIT, seed=seed, device="cpu",
        output_dir=str(pair),
    )  # fmt: skip
    learning.train(train)
    variants = ("trained", "init", "fine_tuned")
    opened = open_pair(DecodeConfig(pair=str(pair), device="cpu"), variants)
    tokenizer, pairs = opened.tokenizer, opened.pairs
    sets = {name: read_records(task / f"{name}.jsonl", True) for name in ("validation", "test")}
    examples = {name: encode_all(tokenizer, records, 64) for name, records in sets.items()}
    prompts = {name: [one.prompt for one in part] for name, part in examples.items()}
    wanted = {name: [record.answer or "" for record in records] for name, records in sets.items()}
    values = {name: scores_of(one.base, examples["validation"], 100) for name, one in pairs.items()}

    points = list(
        curve(pairs["trained"], "deferral", values["trained"]["deferral"], RATES, prompts["validation"],
              wanted["validation"], exact, HOW)
    )  # fmt: skip
    at = best(points).threshold

    def told(name: str, one: Pair, rule_for: RuleFor, **more: Any) -> dict[str, Any]:
        answers = list(decode(one, prompts["test"], rule_for, HOW))
        found = row(name, answers, wanted["test"], exact).plain()
        return {"what": "row", **{key: one if key == "name" else round(one, 4) for key, one in found.items()}, **more}

    base = opened.base()

    def at_random(rows: Sequence[int]) -> AtRandom:
        return AtRandom(rate, [(seed, 5, number) for number in rows])

    first = told("pair", pairs["trained"], lambda _: Above(SCORES["deferral"], at), eta=at.value)
    yield first
    rate = first["rate"]
    yield told("base alone", base, lambda _: Constant(False))
    yield told("assistant alone", base, lambda _: Constant(True))
    yield told("fine-tuned base alone", pairs["fine_tuned"], lambda _: Constant(False))
    yield told("trained base, never deferring", pairs["trained"], lambda _: Constant(False))
    for name in ("fine_tuned", "trained"):
        yield told(f"{name.replace('_', '-')} base, at random", pairs[name], at_random)
    for name, variant in (("fine-tuned base, weak labels", "fine_tuned"), ("base, weak labels", "init")):
        rule = Above(SCORES["deferral"], fit(values[variant]["deferral"], rate, "above"))
        yield told(name, pairs[variant], partial(always, rule))
    for name, one, rule_for in (
        ("pair", pairs["trained"], lambda _: Above(SCORES["deferral"], at)),
        ("fine-tuned base alone", pairs["fine_tuned"], lambda _: Constant(False)),
        ("assistant alone", base, lambda _: Constant(True)),
    ):
        yield {"what": "writer", "name": name, **as_writer(list(decode(one, prompts["test"], rule_for, SAMPLED)))}
    for name, variant, score in (
        ("deferral of the trained base", "trained", "deferral"),
        ("entropy of the fine-tuned base", "fine_tuned", "entropy"),
    ):
        found = curve(pairs[variant], score, values[variant][score], RATES, prompts["test"], wanted["test"], exact, HOW)
        for point in found:
            yield {"what": "curve", "name": name, **_plain(point)}


def always(rule: Rule, rows: Sequence[int]) -> Rule:
    """The rule of every batch."""
    return rule


def as_writer(answers: Sequence[Answer]) -> dict[str, Any]:
    """Shares of drawn prompts that the grammar knows, and that are new among them, with the calls of a prompt."""
    texts = [without_marks(one.text) for one in answers]
    valid, new, pool = 0, 0, SimilarityPool(0.8)
    for text in texts:
        try:
            parse(text)
        except ValueError:
            continue
        valid += 1
        new += pool.similar(text) is None
        pool.add(text)
    return {
        "valid": valid / len(texts),
        "novel": new / len(texts),
        "rate": round(rate_of(answers), 4),
        "calls": sum(one.calls for one in answers) / len(answers),
    }


def _plain(point: Point) -> dict[str, Any]:
    return {
        "share": point.threshold.rate,
        "metric": round(point.metric, 4),
        "rate": round(point.rate, 4),
        "calls": round(point.calls, 3),
    }


def figure(lines: Sequence[dict[str, Any]]) -> str:
    """Exact match against the share of tokens that the assistant wrote, means over seeds."""
    series = []
    for name in dict.fromkeys(line["name"] for line in lines if line["what"] == "curve"):
        points = [
            [line for line in lines if line["what"] == "curve" and (line["name"], line["share"]) == (name, share)]
            for share in RATES
        ]
        x, y = ([statistics.mean(one[key] for one in part) for part in points] for key in ("rate", "metric"))
        series.append(Series(name, x, y))
    return curve_svg(series, "exact match, mean over seeds", "share of tokens left to the assistant", standalone=True)


def tables(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: the rows of every seed, and the curves."""
    seeds = sorted({line["seed"] for line in lines})
    rows = [["", *(f"seed {seed}" for seed in seeds)]]
    for name in dict.fromkeys(line["name"] for line in lines if line["what"] == "row"):
        by = {line["seed"]: line for line in lines if line["what"] == "row" and line["name"] == name}
        rows.append([name, *(f"{by[seed]['metric']:.3f} at {by[seed]['rate']:.2f}" for seed in seeds)])
    writers = [["drawn at temperature 1", *(f"seed {seed}" for seed in seeds)]]
    for name in dict.fromkeys(line["name"] for line in lines if line["what"] == "writer"):
        by = {line["seed"]: line for line in lines if line["what"] == "writer" and line["name"] == name}
        told = (f"{one['valid']:.2f}, {one['novel']:.2f}, {one['calls']:.1f}" for one in map(by.get, seeds) if one)
        writers.append([f"{name}: valid, novel, calls", *told])
    curves = [["share of validation tokens", *(f"{share:g}" for share in RATES)]]
    for name in dict.fromkeys(line["name"] for line in lines if line["what"] == "curve"):
        for seed in seeds:
            part = [one for one in lines if one["what"] == "curve" and (one["name"], one["seed"]) == (name, seed)]
            curves.append([f"{name}, seed {seed}", *(f"{one['metric']:.3f} at {one['rate']:.2f}" for one in part)])
    seconds = [line["cpu"] for line in lines if line["what"] == "seconds"]
    return f"{table(rows)}\n\n{table(writers)}\n\n{table(curves)}\n\nCPU seconds: {', '.join(map(str, seconds))}"


if __name__ == "__main__":
    main()
