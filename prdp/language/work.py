"""What `prdp collm` does: make the embedded task, score, train, calibrate, decode."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prdp import calibration
from prdp.checkpoints.run_folder import check_empty, check_writable
from prdp.language.assistants import Assistant
from prdp.language.building import (
    assistant_of,
    build_assistant,
    build_metric,
    decoding_of,
    digests,
    identity,
    pair_of,
)
from prdp.language.calibrating import Point, best, curve, scores_of
from prdp.language.choosing import SCORES, Above
from prdp.language.comparison import Row, baselines, row, table
from prdp.language.decoding import Answer, Pair, decode, stream
from prdp.language.folder import (
    BASELINES,
    MANIFEST,
    THRESHOLD,
    CollmFolder,
    write_manifest,
    write_variant,
)
from prdp.language.models import DeferringModel, LanguageModel, load_network, load_tokenizer
from prdp.language.page import page, pieces
from prdp.language.records import Record, encode_all, encode_prompt, file_digest, read_records
from prdp.language.scores import ScoredExample, Scores, score_files
from prdp.language.settings import CalibrateConfig, DecodeConfig, PretrainConfig, ScoreConfig, TrainConfig
from prdp.language.tokenizers import tokenizer_digest
from prdp.language.training import Learning, learn_labels, learn_language, learn_mixture
from prdp.support.errors import StartError, start_up_checks
from prdp.support.json_lines import json_line, load_json
from prdp.support.printable import printable
from prdp.support.storage import append, atomic_directory, write_atomically

LOG_FILE = "log.jsonl"
_LINES = 8
"""Of the console, over all steps of something that learns."""
_LENGTH = 1 << 20
"""Tokens of a validation record at most: what the models read is checked before anything is decoded."""


def pretrain(config: PretrainConfig) -> Path:
    """Train the two models of the embedded task, and write its records; the folder.

    Raises:
        ConfigError: a folder that is in use.
    """
    from prdp.language import shapes_task

    folder = Path(config.output_dir)
    check_empty(folder)
    sizes = {"train": config.train, "validation": config.validation, "test": config.test}
    made = shapes_task.records("train", sum(sizes.values()) + 2 * config.train, config.seed)
    with atomic_directory(folder) as place:
        first = 0
        for name, size in sizes.items():
            lines = "".join(json_line(dataclasses.asdict(one)) for one in made[first : first + size])
            (place / f"{name}.jsonl").write_text(lines, encoding="utf-8")
            first += size
        jobs = (("base", config.base_steps, True), ("assistant", config.assistant_steps, False))
        for number, (name, steps, marks) in enumerate(jobs):
            seed = 2 * config.seed + number
            model = shapes_task.build_model(name, seed)
            data = made[first + number * config.train : first + (number + 1) * config.train]
            losses = shapes_task.train_language_model(
                model,
                data,
                writes_marks=marks,
                steps=steps,
                learning_rate=config.learning_rate,
                batch_size=config.batch_size,
                seed=seed,
            )
            print(f"{name}: {model.num_parameters():,} weights")
            _watch(name, ({"loss": loss} for loss in losses), steps, lambda line: None)
            model.save_pretrained(place / name)
            shapes_task.build_tokenizer().save_pretrained(place / name)
    print(folder)
    return folder


def score(config: ScoreConfig) -> Path:
    """Write the log-probabilities of an assistant for the answers of files; the folder.

    Raises:
        ConfigError, StartError: by key, before anything is scored.
    """
    folder = Path(config.output_dir)
    check_writable(folder)
    own = not config.tokenizer
    tokenizer = load_tokenizer("assistant.path" if own else "tokenizer", config.tokenizer or config.assistant.path)
    assistant = build_assistant(config.assistant, tokenizer, config.batch_size, own)
    _check_server(assistant, tokenizer, read_records(Path(config.data[0]), True)[0])
    limit = min(config.max_length, assistant.limit or config.max_length)
    told = score_files(
        folder,
        [Path(file).expanduser() for file in config.data],
        assistant,
        tokenizer,
        identity(config.assistant),
        tokenizer_digest(tokenizer),
        limit,
    )
    for line in told:
        print(line, flush=True)
    print(folder)
    return folder


def train(config: TrainConfig) -> Path:
    """Train a base to defer; the folder.

    Raises:
        ConfigError, StartError: by key, before anything is learned.
    """
    folder = Path(config.output_dir)
    check_empty(folder)
    scores = Scores.open(Path(config.scores).expanduser())
    tokenizer = load_tokenizer("base", config.base)
    if tokenizer_digest(tokenizer) != scores.tokenizer:
        raise StartError(_other_tokenizer(config.base, tokenizer, scores))
    data = scores.read()
    mode, settings = config.training.mode, config.training
    learning = Learning(
        settings.steps, settings.batch_size, settings.learning_rate, settings.row_learning_rate, seed=config.seed
    )
    first = dataclasses.replace(
        learning, steps=config.init.steps, row_learning_rate=config.init.row_learning_rate, warm_up=0.0
    )

    def labels(model: DeferringModel) -> Iterator[dict[str, float]]:
        return learn_labels(model, data, first, config.init.labels, config.init.positive_weight)

    with atomic_directory(folder) as place:

        def log(line: dict[str, Any]) -> None:
            append(place / LOG_FILE, json_line(line))

        model = _adapted(config, tokenizer, mode)
        _watch("weak labels", labels(model), first.steps, log)
        write_variant(place / "init", model, "head")
        mixture = learn_mixture(model, data, learning, settings.cost, base_learns=mode != "head")
        _watch("mixture", mixture, settings.steps, log)
        write_variant(place / "trained", model, mode)
        if config.fine_tuned and mode != "head":
            model = _adapted(config, tokenizer, mode)
            _watch("fine-tuned base", learn_language(model, data, learning), settings.steps, log)
            _watch("its weak labels", labels(model), first.steps, log)
            write_variant(place / "fine_tuned", model, mode)
        tokenizer.save_pretrained(place / "tokenizer")
        for name in ("trained", "fine_tuned"):
            if (place / name / "config.json").is_file():
                tokenizer.save_pretrained(place / name)
        facts = {"settings": dataclasses.asdict(config), "data": scores.digest(), "examples": len(data)}
        write_manifest(place, config.base, mode, scores.assistant, scores.tokenizer, facts)
    print(f"{folder}  (prdp collm calibrate pair={folder} data=...)")
    return folder


def calibrate(config: CalibrateConfig) -> Point:
    """Find eta, and thresholds of the baselines at its rate; both are written into the pair's folder.

    Raises:
        ConfigError, StartError: by key.
    """
    metric = build_metric(config.metric)
    data = Path(config.data).expanduser()
    records = read_records(data, with_answers=True)
    folder, assistant, tokenizer, pairs, _ = _opened(config, ("trained", "init", "fine_tuned"))
    examples = encode_all(tokenizer, records, _LENGTH)
    _check_server(assistant, tokenizer, records[0])
    prompts, wanted = [one.prompt for one in examples], [record.answer or "" for record in records]
    how, size = decoding_of(config.writing), config.writing.batch_size
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
    bound = digests(folder, assistant, config.writing, file_digest(data))
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
    folder, assistant, tokenizer, pairs, base = _opened(config, names)
    eta, calibrated = _eta(config, folder, assistant)
    if compares and not calibrated:
        compares = False
        print("no baselines: `prdp collm calibrate` finds their thresholds")
    pair, how = pairs[config.variant], decoding_of(config.writing)
    rule = Above(SCORES["deferral"], eta)
    with start_up_checks("prompt"):
        prompts = [encode_prompt(tokenizer, record.prompt) for record in records]
    if config.prompt:
        return _stream(pair, prompts[0], rule, config)
    answers = list(decode(pair, prompts, lambda _: rule, how))
    rows: list[Row] = []
    if known:
        wanted = [record.answer or "" for record in records]
        rows.append(row(f"pair, eta {eta:.4g}", answers, wanted, metric))
        others = baselines(pairs, base(), rows[0].rate, calibrated) if compares else []
        for name, other, rule_for in others:
            rows.append(row(name, list(decode(other, prompts, rule_for, how)), wanted, metric))
        print(table(rows, config.metric))
    if config.output:
        _write_answers(Path(config.output).expanduser(), tokenizer, records, answers, rows, config)
    elif not known:
        for answer in answers:
            print(printable(answer.text))
    return rows


def _opened(
    config: CalibrateConfig | DecodeConfig, variants: Sequence[str]
) -> tuple[CollmFolder, Assistant, Any, dict[str, Pair], Callable[[], Pair]]:
    """The folder of a pair, its assistant, tokenizer, those of the variants that there are, and the base as it came."""
    folder = CollmFolder.open(Path(config.pair).expanduser())
    there = folder.variants()
    if variants[0] not in there:
        raise StartError(f"variant={variants[0]}: {folder.folder} has {', '.join(there) or 'none'}")
    tokenizer = load_tokenizer("pair", str(folder.tokenizer_folder))
    chosen = assistant_of(config.assistant, folder.assistant)
    assistant = build_assistant(chosen, tokenizer, config.writing.batch_size)
    if assistant.digest != folder.assistant.get("digest"):
        print(f"{folder.folder} has learned when to ask another assistant than {assistant.name}")
    pairs = {
        name: pair_of(folder.load(name, config.device, config.dtype), assistant, tokenizer)
        for name in variants
        if name in there
    }

    def base() -> Pair:
        network = load_network("pair.base", folder.base, config.device, config.dtype)
        return pair_of(LanguageModel(network, len(tokenizer)), assistant, tokenizer)

    return folder, assistant, tokenizer, pairs, base


def _eta(config: DecodeConfig, folder: CollmFolder, assistant: Assistant) -> tuple[float, dict[str, float]]:
    """The threshold, and those of the baselines where there are some."""
    file = folder.folder / BASELINES
    thresholds: dict[str, float] = {}
    prompts = ""
    if file.is_file():
        try:
            content = load_json(file.read_bytes())
            prompts = str(content["prompts"])
            thresholds = {str(name): float(value) for name, value in content["thresholds"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StartError(f"pair: {file} is damaged: {error}") from None
    if config.eta != "auto":
        return float(config.eta), thresholds
    if config.variant == "trained":
        bound = digests(folder, assistant, config.writing, prompts)
        return calibration.load(folder.folder / THRESHOLD, bound).value, thresholds
    if config.variant not in thresholds:
        raise StartError(f"eta=auto: {file} has no threshold of {config.variant}; `prdp collm calibrate` finds one")
    return thresholds[config.variant], thresholds


def _adapted(config: TrainConfig, tokenizer: Any, mode: str) -> DeferringModel:
    """The base with a row, and with an adapter where one is to learn."""
    network = load_network("base", config.base, config.device, config.dtype)
    if mode == "lora":
        import torch
        from peft import LoraConfig, get_peft_model

        lora = config.training.lora
        adapter = LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
        )
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            network = get_peft_model(network, adapter)
    with start_up_checks(f"base={config.base}"):
        return DeferringModel(network, len(tokenizer))


def _watch(name: str, made: Iterator[dict[str, float]], steps: int, log: Callable[[dict[str, Any]], None]) -> None:
    """Take all steps; each goes to the log, some to the console."""
    every = max(1, steps // _LINES)
    for number, one in enumerate(made):
        log({"phase": name, "step": number, **one})
        if number % every == every - 1 or number == steps - 1:
            told = ", ".join(f"{key} {value:.4g}" for key, value in one.items())
            print(f"{name}, step {number + 1} of {steps}: {told}", flush=True)


def _check_server(assistant: Assistant, tokenizer: Any, record: Record) -> None:
    from prdp.language.endpoint_assistant import EndpointAssistant

    if isinstance(assistant, EndpointAssistant):
        assistant.check(encode_all(tokenizer, [record], _LENGTH)[0])


def _other_tokenizer(base: str, tokenizer: Any, scores: Scores) -> str:
    from prdp.language.tokenizers import difference

    path = str(scores.assistant.get("path") or "")
    found = difference(tokenizer, load_tokenizer("assistant", path)) if path and Path(path).is_dir() else None
    return f"base={base}: its tokenizer is not that of the scores{f': {found}' if found else ''}"


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


__all__ = ["MANIFEST", "ScoredExample", "calibrate", "pretrain", "score", "train", "write"]
