"""What `prdp collm` writes: eta by validation, texts with who wrote each token, the comparison."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prdp import calibration
from prdp.language.building import build_metric, check_server, decoding_of
from prdp.language.calibrating import Point, best, curve, scores_of
from prdp.language.choosing import SCORES, Above
from prdp.language.comparison import Row, baselines, row, table
from prdp.language.decoding import Answer, Pair, check_lengths, decode, stream
from prdp.language.folder import BASELINES, THRESHOLD
from prdp.language.opening import open_pair
from prdp.language.page import page, pieces
from prdp.language.records import Record, encode_all, encode_prompt, file_digest, read_records
from prdp.language.settings import CalibrateConfig, DecodeConfig
from prdp.support.errors import start_up_checks
from prdp.support.json_lines import json_line
from prdp.support.printable import printable
from prdp.support.storage import write_atomically


def calibrate(config: CalibrateConfig) -> Point:
    """Find eta, and thresholds of the baselines at its rate; both are written into the pair's folder.

    Raises:
        ConfigError, StartError: by key.
    """
    metric = build_metric(config.metric)
    data = Path(config.data).expanduser()
    records = read_records(data, with_answers=True)
    opened = open_pair(config, ("trained", "init", "fine_tuned"))
    folder, assistant, tokenizer, pairs = opened.folder, opened.assistant, opened.tokenizer, opened.pairs
    limits = [one for one in (pairs["trained"].limit, assistant.limit) if one is not None]
    examples = encode_all(tokenizer, records, min(limits, default=None), f"data={data}")
    prompts, wanted = [one.prompt for one in examples], [record.answer or "" for record in records]
    how, size = decoding_of(config.writing), config.writing.batch_size
    check_lengths(pairs["trained"], prompts, how.max_new_tokens)
    check_server(assistant, tokenizer, records[0])
    values = {name: scores_of(pair.base, examples, size) for name, pair in pairs.items()}
    points = []
    print(f"{'share':>6}  {'eta':>8}  {config.metric:>8}  {'deferred':>8}  {'calls':>6}")
    deferral = values["trained"]["deferral"]
    for point in curve(pairs["trained"], "deferral", deferral, config.rates, prompts, wanted, metric, how):
        points.append(point)
        at = point.threshold
        told = f"{at.rate:>6.2f}  {at.value:>8.4f}  {point.metric:>8.3f}  {point.rate:>8.3f}  {point.calls:>6.1f}"
        print(told, flush=True)
    chosen = best(points, config.largest_rate)
    bound = opened.digests(file_digest(data))
    alone = "fine_tuned" if "fine_tuned" in pairs else "trained"
    others = {
        name: calibration.fit(values[name]["deferral"], chosen.rate, "above") for name in pairs if name != "trained"
    }
    others["entropy"] = calibration.fit(values[alone]["entropy"], chosen.rate, "above")
    content = {
        "prompts": bound["prompts"],
        "metric": config.metric,
        "rate": chosen.rate,
        "thresholds": {name: one.value for name, one in others.items()},
        "curve": [{"eta": repr(one.threshold.value), **_measured(one)} for one in points],
    }
    write_atomically(folder.folder / BASELINES, (json.dumps(content, indent=2) + "\n").encode())
    calibration.save(folder.folder / THRESHOLD, chosen.threshold, bound)
    print(f"eta {chosen.threshold.value:.4f}: {config.metric} {chosen.metric:.3f}, {chosen.rate:.1%} deferred")
    print(folder.folder / THRESHOLD)
    return chosen


def write(config: DecodeConfig) -> list[Row]:
    """Answer prompts; the table, empty where no answers are known.

    Raises:
        ConfigError, StartError: by key, before anything is decoded.
    """
    metric = build_metric(config.metric)
    records = read_records(Path(config.data).expanduser()) if config.data else [Record(config.prompt)]
    known = all(record.answer is not None for record in records)
    compares = config.compare and known and config.variant == "trained"
    names = ("trained", "init", "fine_tuned") if compares else (config.variant,)
    opened = open_pair(config, names)
    eta, calibrated = opened.eta(config.variant, config.eta), opened.baselines()
    if compares and not calibrated:
        compares = False
        print("no baselines: `prdp collm calibrate` finds their thresholds")
    pair, how, tokenizer = opened.pairs[config.variant], decoding_of(config.writing), opened.tokenizer
    rule = Above(SCORES["deferral"], eta)
    with start_up_checks("prompt"):
        prompts = [encode_prompt(tokenizer, record.prompt) for record in records]
    check_lengths(pair, prompts, how.max_new_tokens)
    if config.prompt:
        return _stream(pair, prompts[0], rule, config)
    answers = list(decode(pair, prompts, lambda _: rule, how))
    rows: list[Row] = []
    if known:
        wanted = [record.answer or "" for record in records]
        rows.append(row(f"pair, eta {eta:.4g}", answers, wanted, metric))
        others = baselines(opened.pairs, opened.base(), rows[0].rate, calibrated) if compares else []
        for name, other, rule_for in others:
            rows.append(row(name, list(decode(other, prompts, rule_for, how)), wanted, metric))
        print(table(rows, config.metric))
    if config.output:
        _write_answers(Path(config.output).expanduser(), tokenizer, records, answers, rows, config)
    elif not known:
        for answer in answers:
            print(printable(answer.text))
    return rows


def _measured(point: Point) -> dict[str, float]:
    return {"share": point.threshold.rate, "metric": point.metric, "rate": point.rate, "calls": point.calls}


def _stream(pair: Pair, prompt: Sequence[int], rule: Above, config: DecodeConfig) -> list[Row]:
    """Show a text while it is written: what the assistant wrote in bold on a terminal, in brackets elsewhere."""
    opening, closing = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("[", "]")
    answer, shown = Answer(), 0
    for token, by_assistant in stream(pair, prompt, rule, decoding_of(config.writing)):
        answer.tokens.append(token)
        answer.by_assistant.append(by_assistant)
        answer.deferral.append(0.0)
        told = list(pieces(pair.tokenizer, answer))
        for text, asked, _ in told[shown:]:
            bare = printable(text, lines=True)
            print(f"{opening}{bare}{closing}" if asked and bare else bare, end="", flush=True)
        shown = len(told)
    print(f"\n{len(answer.tokens)} tokens, {sum(answer.by_assistant)} of the assistant")
    return []


def _write_answers(
    file: Path,
    tokenizer: Any,
    records: Sequence[Record],
    answers: Sequence[Answer],
    rows: Sequence[Row],
    config: DecodeConfig,
) -> None:
    lines = [
        {
            "prompt": record.prompt,
            **({} if record.answer is None else {"answer": record.answer}),
            "text": answer.text,
            "tokens": tokenizer.convert_ids_to_tokens(answer.tokens),
            "by_assistant": [int(one) for one in answer.by_assistant],
            "deferral": [round(one, 4) for one in answer.deferral],
            "calls": answer.calls,
        }
        for record, answer in zip(records, answers, strict=True)
    ]
    write_atomically(file, "".join(map(json_line, lines)).encode())
    title = f"{Path(config.pair).name}: who wrote what"
    shown = page(title, tokenizer, records, answers, rows, config.metric)
    write_atomically(file.with_suffix(".html"), shown.encode())
    print(f"{file}\n{file.with_suffix('.html')}")
