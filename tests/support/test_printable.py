"""Nothing of a prompt, a name or a status file acts on the terminal."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from prdp.cli import main as prdp
from prdp.commands.status import told
from prdp.evaluation.tables import _markdown_row, _print
from prdp.support.printable import PrintableFormatter, make_output_printable, printable, printable_values
from prdp.tracking.console import LOG_FILE, Progress

HOSTILE = "\x1b[2J\x1b]0;owned\x07 [red]fox[/red] \x9b31m \u202egnp.exe\u202c \r\u2028 \x00\x08 \ud800"
SHOWN = r"\x1b[2J\x1b]0;owned\x07 [red]fox[/red] \x9b31m \u202egnp.exe\u202c \r\u2028 \x00\x08 \ud800"


def harmless(text: str) -> bool:
    kinds = {unicodedata.category(letter) for letter in text if letter not in "\n\t"}
    return not kinds & {"Cc", "Cs", "Zl", "Zp"} and not set(text) & set("\u202e\u202c\u200f")


@settings(deadline=None)
@given(st.text(st.characters()))
def test_what_is_shown_acts_on_nothing(text: str) -> None:
    assert harmless(printable(text, lines=True)) and "\n" not in printable(text)
    printable(text).encode()
    if text.isprintable():
        assert printable(text) == text


def test_escapes_stand_in_place_and_lines_stay_where_asked() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("a\nb\tc\U0001f469\u200d\U0001f680 猫") == "a\\nb\tc\U0001f469\u200d\U0001f680 猫"
    assert printable("a\nb\r", lines=True) == "a\nb\\r"
    assert printable_values({"\x1b": ["\x07", 1, None]}) == {"\\x1b": ["\\x07", 1, None]}


@pytest.mark.parametrize("interactive", [False, True])
def test_progress_and_its_log(interactive: bool, tmp_path: Path) -> None:
    stream = io.StringIO()
    with Progress(2, run_dir=tmp_path, stream=stream, interactive=interactive) as progress:
        progress.message(HOSTILE)
    assert SHOWN in (tmp_path / LOG_FILE).read_text(encoding="utf-8")
    assert "owned\\x07 [red]fox[/red]" in " ".join(stream.getvalue().split())
    assert "\x1b]0;owned" not in stream.getvalue() and "\u202e" not in stream.getvalue()


def test_status_of_a_stranger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    actor = dict.fromkeys(("name", "kind", "node", "pid", "state", "restarts", "chunks"), HOSTILE)
    stage = {"name": HOSTILE, "done": 1, "total": 2, "unit": HOSTILE}
    status = {
        "status": HOSTILE,
        "run_id": HOSTILE,
        "host": HOSTILE,
        "pid": 1,
        "progress": {"epochs": 2, "stages": [stage]},
        "cluster": {"actors": [actor], "last_fault": {"time": 0, "text": HOSTILE + "\nforged line"}},
    }
    (tmp_path / "supervise.log").write_text("\x1b[2Jgone\n")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text(json.dumps(status))
    (tmp_path / "a" / "supervise.log").write_text("\x1b[2Jgone\n")
    for words in (["status", str(tmp_path / "a")], ["status", str(tmp_path)], ["status", "--json", str(tmp_path)]):
        assert prdp(words) == 0
        out = capsys.readouterr().out
        assert harmless(out) and "\nforged" not in out
    for alive in (True, False):
        assert harmless(told({**status, "folder": str(tmp_path / "a"), "alive": alive}, time.time()))


def test_prompts_of_a_stranger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = HOSTILE.replace("\ud800", "").replace("\x00", "")
    rows = [{"prompt": text, "category": text, text: text}, {"prompt": text.upper()}]
    file = tmp_path / "list.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "bad.jsonl").write_text(json.dumps({text: 1}) + "\n")
    all_of_it = ["--option", "metadata_columns=all", "--option", "category_column=category"]
    for words, code in (
        (["inspect", str(file), *all_of_it], 0),
        (["stats", str(file), *all_of_it], 0),
        (["dedupe", str(file)], 0),
        (["leakage", str(file), "--against", str(file)], 1),
        (["inspect", str(tmp_path / "bad.jsonl")], 2),
    ):
        assert prdp(["prompts", *words]) == code
        shown = capsys.readouterr()
        assert harmless(shown.out + shown.err) and "owned\\x07" in shown.out + shown.err
        assert "[red]fox[/red]" in (shown.out + shown.err).lower()


def test_tables_of_an_evaluation() -> None:
    stream = io.StringIO()
    _print(Console(file=stream, width=1000), "", (["reward", HOSTILE], [[HOSTILE, HOSTILE]]))
    assert stream.getvalue().count(SHOWN) == 3 and harmless(stream.getvalue())
    assert _markdown_row(["a|b", "c\nd"]) == "| a\\|b | c\\nd |\n"


def test_letters_that_the_output_has_not_are_escapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.txt").write_text("a füchs 猫\n", encoding="utf-8")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    assert prdp(["prompts", "inspect", str(tmp_path / "list.txt")]) == 0
    assert raw.getvalue().decode("latin-1").endswith("a füchs \\u732b\n")


def test_warnings_and_uncaught_errors(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    record = logging.LogRecord("prdp", logging.WARNING, "", 0, "odd: %s", (HOSTILE,), None)
    assert PrintableFormatter().format(record) == f"odd: {SHOWN}"
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    make_output_printable()
    error = RuntimeError(HOSTILE)
    sys.excepthook(RuntimeError, error, None)
    assert capsys.readouterr().err == f"RuntimeError: {SHOWN}\n"
