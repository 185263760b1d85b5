"""`prdp collm` from scores to texts on small random models, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from prdp.cli import main
from prdp.language.folder import CollmFolder
from prdp.language.shapes_task import WORDS, build_tokenizer, records
from prdp.support.json_lines import json_line, read_json_lines

LEARNING = (
    "training.steps=3", "training.batch_size=4", "training.learning_rate=1e-2", "training.row_learning_rate=1e-2",
    "init.steps=2", "init.row_learning_rate=1e-2",
)  # fmt: skip
WRITING = ("writing.max_new_tokens=10", "writing.batch_size=6", "device=cpu")


def random_folder(place: Path, seed: int, width: int) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=width, intermediate_size=width, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.5, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(place)
    build_tokenizer().save_pretrained(place)
    return place


def write(file: Path, count: int, seed: int) -> Path:
    made = records("train", count, seed)
    file.write_text("".join(json_line({"prompt": one.prompt, "answer": one.answer}) for one in made))
    return file


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, data, scores and a trained pair."""
    place = tmp_path_factory.mktemp("collm")
    random_folder(place / "base", 0, 8)
    random_folder(place / "assistant", 1, 12)
    for seed, (name, count) in enumerate((("train", 8), ("validation", 6), ("test", 6))):
        write(place / f"{name}.jsonl", count, seed)
    data = f"data=[{place / 'train.jsonl'},{place / 'test.jsonl'}]"
    assert main(["collm", "score", f"assistant={place / 'assistant'}", data, f"output_dir={place / 'scores'}"]) == 0
    words = [f"base={place / 'base'}", f"scores={place / 'scores'}", f"output_dir={place / 'pair'}", "device=cpu"]
    assert main(["collm", "train", *words, *LEARNING]) == 0
    return place


@pytest.fixture
def calibrated(task: Path, tmp_path: Path) -> Path:
    """A copy of the pair with a threshold."""
    pair = Path(shutil.copytree(task / "pair", tmp_path / "pair"))
    words = [f"pair={pair}", f"data={task / 'validation.jsonl'}", "rates=[0.3]", *WRITING]
    assert main(["collm", "calibrate", *words]) == 0
    return pair


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["collm", *words]) == 2
    return capsys.readouterr().err


def test_from_scores_to_texts(task: Path, calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert CollmFolder.open(calibrated).variants() == ["trained", "init", "fine_tuned"]
    output = tmp_path / "answers.jsonl"
    test = f"data={task / 'test.jsonl'}"
    assert main(["collm", "decode", f"pair={calibrated}", test, f"output={output}", *WRITING]) == 0
    table = capsys.readouterr().out
    for name in (
        "pair, eta", "base alone", "assistant alone", "fine-tuned base alone", "trained base, at random",
        "fine-tuned base, at random", "fine-tuned base, by entropy", "base, weak labels",
    ):  # fmt: skip
        assert f"\n{name}" in table, name
    lines = read_json_lines(output, dict)
    assert [line["answer"] for line in lines] == [one.answer for one in records("train", 6, 2)]
    for line in lines:
        assert len(line["tokens"]) == len(line["by_assistant"]) == len(line["deferral"]) <= 10
        assert line["calls"] == sum(line["by_assistant"])
    page = output.with_suffix(".html").read_text()
    assert "default-src 'none'" in page and 'class="asked"' in page and 'class="own"' in page
    assert "http" not in page.replace("http-equiv", "")
    threshold = json.loads((calibrated / "threshold.json").read_text())
    assert threshold["side"] == "above" and threshold["realised"] == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("mode", ["lora", "head"])
def test_an_adapter_and_a_row_alone(task: Path, tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"base={task / 'base'}", f"scores={task / 'scores'}", f"output_dir={tmp_path / 'pair'}", *LEARNING]
    assert main(["collm", "train", *words, f"training.mode={mode}", "fine_tuned=false", "init.labels=divergent"]) == 0
    assert not list((tmp_path / "pair").rglob("model.safetensors")), "the base's weights are not copied"
    words = [f"pair={tmp_path / 'pair'}", f"prompt={records('train', 1, 0)[0].prompt}", "eta=0.5", *WRITING]
    assert main(["collm", "decode", *words]) == 0
    assert " of the assistant" in capsys.readouterr().out
    again = CollmFolder.open(tmp_path / "pair").load("trained", "cpu", "float32")
    assert any("lora" in name for name, _ in again.named_parameters()) == (mode == "lora")


@pytest.mark.parametrize(
    ("mode", "last"), [("full", ("its weak labels", 1)), ("full", ("mixture", 1)), ("lora", ("mixture", 2))]
)
def test_a_killed_training_ends_as_one_that_was_not(
    task: Path, tmp_path: Path, mode: str, last: tuple[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"base={task / 'base'}", f"scores={task / 'scores'}", "device=cpu", *LEARNING, f"training.mode={mode}"]
    whole, killed = (f"output_dir={tmp_path / name}" for name in ("whole", "killed"))
    assert main(["collm", "train", *words, whole]) == 0

    def until(name: str, step: int, steps: int, found: Any) -> None:
        if (name, step) == last:
            raise KeyboardInterrupt

    with patch("prdp.language.phases.watch", until):
        assert main(["collm", "train", *words, "checkpoint_every=1", killed]) != 0
    assert not (tmp_path / "killed").exists()
    told = refusal(capsys, "train", *words, "training.cost=0.5", killed)
    assert "was begun with other settings (training.cost=0.0 there and 0.5 here)" in told
    assert main(["collm", "train", *words, killed]) == 0
    assert f"goes on at step {last[1]} of {last[0]}" in capsys.readouterr().out
    files = sorted((tmp_path / "whole").rglob("*.safetensors"))
    assert len(files) >= 2
    for file in (*files, tmp_path / "whole" / "log.jsonl"):
        assert file.read_bytes() == (tmp_path / "killed" / file.relative_to(tmp_path / "whole")).read_bytes(), file
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_threshold_of_something_else_is_refused(
    task: Path, calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoding = ["decode", f"pair={calibrated}", f"data={task / 'test.jsonl'}", *WRITING]
    other = random_folder(tmp_path / "other", 5, 12)
    assert "calibrated with another scorer" in refusal(capsys, *decoding, f"assistant={other}")
    assert "calibrated with another sampler" in refusal(capsys, *decoding, "writing.temperature=1")
    shutil.copy(calibrated / "init" / "deferral.safetensors", calibrated / "trained" / "deferral.safetensors")
    assert "calibrated with another model" in refusal(capsys, *decoding)
    assert "has to be calibrated first" in refusal(capsys, "decode", f"pair={task / 'pair'}", *decoding[2:])


def test_what_cannot_work_is_refused_by_name(task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair, data = f"pair={task / 'pair'}", f"data={task / 'test.jsonl'}"
    for value in ("0", "1", "1.5", "-0.2", "much"):
        told = refusal(capsys, "decode", pair, data, f"eta={value}")
        assert f"eta={value}: must be auto, or a number above 0 and below 1" in told
    assert "data, prompt: give a file of prompts or one prompt" in refusal(capsys, "decode", pair)
    assert "there is no command 'scor'" in refusal(capsys, "scor")
    assert "give one of them" in refusal(capsys, "score", data, f"output_dir={tmp_path / 'x'}")
    url = "assistant.url=http://127.0.0.1:9/v1"
    assert "tokenizer: must be given for assistant.url" in refusal(capsys, "score", data, url, "output_dir=x")
    assert "output_dir" in refusal(capsys, "pretrain", f"output_dir={task}")
    long = tmp_path / "long.jsonl"
    long.write_text(json_line({"prompt": "red", "answer": "blue " * 70}))
    told = f"data={long}: record 1 has 73 tokens, more than the 64 that are read"
    for words in (("score", f"assistant={task / 'assistant'}", f"output_dir={tmp_path / 'x'}"), ("calibrate", pair)):
        assert told in refusal(capsys, *words, f"data={long}")
    with patch("prdp.language.writing.scores_of", side_effect=AssertionError("nothing is computed before")):
        told = refusal(capsys, "calibrate", pair, data, "writing.max_new_tokens=60")
        assert "prompt 1 has" in told and "more than the 64 that both models read" in told
    for text, problem in (("[1]", "is no object with a prompt and an answer"), ("{", "line 1 is damaged")):
        long.write_text(text)
        assert problem in refusal(capsys, "calibrate", pair, f"data={long}")
    assert "metric=math.nan: is no function" in refusal(capsys, "calibrate", pair, data, "metric=math.nan")
    assert "device=cuda:9: torch" in refusal(capsys, "decode", pair, data, "eta=0.5", "device=cuda:9")
    told = refusal(capsys, "score", f"assistant={tmp_path}", data, f"output_dir={tmp_path / 'x'}")
    assert f"assistant.path={tmp_path}: holds no tokenizer" in told and len(told.splitlines()) == 1
    assert "there is no scores.json" in refusal(capsys, "train", "base=b", f"scores={task}", "output_dir=x")


def test_a_base_whose_tokenizer_differs_is_refused_with_the_first_difference(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(task / "base", tmp_path / "other"))
    file = other / "tokenizer.json"
    content: Any = json.loads(file.read_text())
    words = content["model"]["vocab"]
    words["red"], words["blue"] = words["blue"], words["red"]
    file.write_text(json.dumps(content))
    told = refusal(capsys, "train", f"base={other}", f"scores={task / 'scores'}", f"output_dir={tmp_path / 'x'}")
    first = WORDS.index("red")
    assert f"its tokenizer is not that of the scores: token {first} is 'blue' here and 'red' there" in told


def test_a_base_that_reads_less_than_the_records_is_refused(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = Path(shutil.copytree(task / "base", tmp_path / "short"))
    content: Any = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**content, "max_position_embeddings": 20}))
    told = refusal(capsys, "train", f"base={short}", f"scores={task / 'scores'}", f"output_dir={tmp_path / 'x'}")
    assert f"base={short}: reads 20 tokens, and the longest record of the scores has" in told


def test_a_base_that_has_changed_is_refused(task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = Path(shutil.copytree(task / "pair", tmp_path / "pair"))
    manifest: Any = json.loads((pair / "collm.json").read_text())
    manifest["base"] = str(random_folder(tmp_path / "moved", 9, 8))
    (pair / "collm.json").write_text(json.dumps(manifest))
    told = refusal(capsys, "decode", f"pair={pair}", f"data={task / 'test.jsonl'}", "variant=init", "eta=0.5", *WRITING)
    assert "is no longer the base that it was trained from" in told


@pytest.mark.parametrize("words", [(), ("--help",), ("score", "--help"), ("decode", "--help", "eta")])
def test_help(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["collm", *words])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    assert code == (0 if words else 2)
    assert "eta" in capsys.readouterr().out or not words or words == ("score", "--help")
