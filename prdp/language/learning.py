"""What `prdp collm` learns: the embedded task's models, scores of an assistant, a base that defers."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prdp.checkpoints.run_folder import check_empty, check_writable
from prdp.checkpoints.unfinished import Unfinished
from prdp.language.building import build_assistant, check_server, identity
from prdp.language.folder import folder_digest, write_manifest
from prdp.language.models import DeferringModel, length_limit_of, load_network, load_tokenizer
from prdp.language.phases import Phase, run_phases, watch
from prdp.language.records import Example, read_records
from prdp.language.scores import Scores, score_files
from prdp.language.settings import PretrainConfig, ScoreConfig, TrainConfig
from prdp.language.tokenizers import tokenizer_digest
from prdp.language.training import Learning, Progress, learn_labels, learn_language, learn_mixture
from prdp.support.errors import StartError, start_up_checks
from prdp.support.json_lines import json_line
from prdp.support.storage import atomic_directory

_BESIDE = ("base", "scores", "device", "output_dir", "checkpoint_every")
"""Keys that may change on the way; base and scores count by their digests."""


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
            for step, loss in enumerate(losses):
                watch(name, step, steps, {"loss": loss})
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
    check_server(assistant, tokenizer, read_records(Path(config.data[0]), True)[0])
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
    _check_lengths(config.base, [one.example for one in data])
    mode, settings = config.training.mode, config.training
    learning = Learning(
        settings.steps, settings.batch_size, settings.learning_rate, settings.row_learning_rate, seed=config.seed
    )
    first = dataclasses.replace(
        learning, steps=config.init.steps, row_learning_rate=config.init.row_learning_rate, warm_up=0.0
    )

    def labels(model: DeferringModel, progress: Progress) -> Iterator[dict[str, float]]:
        return learn_labels(model, data, first, config.init.labels, config.init.positive_weight, progress)

    def mixture(model: DeferringModel, progress: Progress) -> Iterator[dict[str, float]]:
        return learn_mixture(model, data, learning, settings.cost, mode != "head", progress)

    def language(model: DeferringModel, progress: Progress) -> Iterator[dict[str, float]]:
        return learn_language(model, data, learning, progress)

    phases = [
        Phase("weak labels", first.steps, labels, True, ("init", "head")),
        Phase("mixture", settings.steps, mixture, False, ("trained", mode)),
    ]
    if config.fine_tuned and mode != "head":
        phases += [
            Phase("fine-tuned base", settings.steps, language, True, None),
            Phase("its weak labels", first.steps, labels, False, ("fine_tuned", mode)),
        ]
    decisive = {key: value for key, value in dataclasses.asdict(config).items() if key not in _BESIDE}
    unfinished = Unfinished(folder, {**decisive, "base": folder_digest(config.base), "scores": scores.digest()})
    with unfinished.held():
        run_phases(phases, lambda: _adapted(config, tokenizer, mode), mode, unfinished, config.checkpoint_every)
        with atomic_directory(folder) as place:
            shutil.copytree(unfinished.made, place, dirs_exist_ok=True)
            tokenizer.save_pretrained(place / "tokenizer")
            for name in ("trained", "fine_tuned"):
                if (place / name / "config.json").is_file():
                    tokenizer.save_pretrained(place / name)
            facts = {"settings": dataclasses.asdict(config), "data": scores.digest(), "examples": len(data)}
            write_manifest(place, config.base, mode, scores.assistant, scores.tokenizer, facts)
        unfinished.remove()
    print(f"{folder}  (prdp collm calibrate pair={folder} data=...)")
    return folder


def _check_lengths(base: str, examples: Sequence[Example]) -> None:
    """Refuse a base that does not read the longest record."""
    limit = length_limit_of("base", base)
    longest = max(len(one.prompt) + len(one.answer) for one in examples)
    if limit is not None and longest > limit:
        raise StartError(
            f"base={base}: reads {limit} tokens, and the longest record of the scores has {longest}; score with "
            f"max_length={limit} to find it"
        )


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


def _other_tokenizer(base: str, tokenizer: Any, scores: Scores) -> str:
    from prdp.language.tokenizers import difference

    path = str(scores.assistant.get("path") or "")
    found = difference(tokenizer, load_tokenizer("assistant", path)) if path and Path(path).is_dir() else None
    return f"base={base}: its tokenizer is not that of the scores{f': {found}' if found else ''}"
