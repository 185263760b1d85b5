"""Tables of prompts: content, fingerprint, damage; the cache that finds them again."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from prdp.prompts import cache
from prdp.prompts.table import ROWS_PER_BATCH, DamagedTableError, PromptTable, Row, write_table
from prdp.prompts.text_file import TextFilePrompts


def rows(count: int) -> Iterator[Row]:
    return (Row(f"prompt {index} é", {"index": index}, f"row {index}") for index in range(count))


def table(path: Path, count: int) -> PromptTable:
    with path.open("wb") as file:
        assert write_table(file, rows(count)) == count
    return PromptTable(path)


@pytest.mark.parametrize("count", [1, ROWS_PER_BATCH - 1, ROWS_PER_BATCH, 2 * ROWS_PER_BATCH + 1])
def test_rows_come_back(tmp_path: Path, count: int) -> None:
    source = table(tmp_path / "t.arrow", count)
    assert len(source) == count
    for index in {0, count // 2, count - 1, ROWS_PER_BATCH % count, *range(0, count, 61)}:
        assert source[index] == (f"prompt {index} é", {"index": index})
    assert [entry["index"] for entry in source.metadata()] == list(range(count))
    assert list(source.texts())[-1] == f"prompt {count - 1} é"


def test_the_same_rows_give_the_same_bytes_and_others_another_fingerprint(tmp_path: Path) -> None:
    def written(texts: list[str], metadata: dict[str, int]) -> tuple[bytes, str]:
        file = io.BytesIO()
        write_table(file, (Row(text, metadata, "") for text in texts))
        (tmp_path / "t.arrow").write_bytes(file.getvalue())
        return file.getvalue(), PromptTable(tmp_path / "t.arrow").fingerprint

    assert written(["a", "b"], {}) == written(["a", "b"], {})
    fingerprints = {written(*case)[1] for case in ((["a", "b"], {}), (["b", "a"], {}), (["ab"], {}), (["a"], {"n": 1}))}
    assert len(fingerprints) == 4


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.arrow"
    table(path, 10)
    whole = path.read_bytes()
    for content in (whole[:-30], b"", b"no arrow at all"):
        path.write_bytes(content)
        with pytest.raises(DamagedTableError, match=r"t\.arrow is no whole table of prompts"):
            PromptTable(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("PRDP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prompts"


def test_built_once_and_again_when_the_file_or_an_option_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []

    def counting(*arguments: object) -> int:
        built.append(1)
        return write_table(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "write_table", counting)
    file = tmp_path / "list.txt"
    file.write_text("cat\n")
    for path in (str(file), os.path.relpath(file)):
        assert TextFilePrompts(path)[0][0] == "cat"
    assert len(built) == 1
    assert TextFilePrompts(str(file), template="a {}")[0][0] == "a cat"
    assert len(built) == 2
    file.write_text("dog\n")
    os.utime(file, ns=(0, 1))
    assert TextFilePrompts(str(file))[0][0] == "dog"
    monkeypatch.setattr(cache, "BUILDER_VERSION", 10**6)
    TextFilePrompts(str(file))
    assert len(built) == len(list(folder.iterdir())) == 4


def test_a_damaged_table_is_built_anew(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "list.txt"
    file.write_text("cat\n")
    path = TextFilePrompts(str(file)).path
    path.write_bytes(path.read_bytes()[:-30])
    with caplog.at_level(logging.WARNING):
        assert TextFilePrompts(str(file))[0][0] == "cat"
    assert "building anew" in caplog.text


def test_a_file_that_changes_while_it_is_read_leaves_no_table(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "list.txt"
    file.write_text("cat\n")

    def meddling(*arguments: object) -> int:
        file.write_text("cat\ndog\n")
        return write_table(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "write_table", meddling)
    with pytest.raises(ValueError, match=r"list\.txt changed while it was read"):
        TextFilePrompts(str(file))
    assert list(folder.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "list.txt").write_text("cat\n")
    monkeypatch.setenv("PRDP_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="PRDP_CACHE names another folder"):
        TextFilePrompts(str(tmp_path / "list.txt"))


def build(path: str, start: object) -> str:
    start.wait()  # type: ignore[attr-defined]
    return TextFilePrompts(path).fingerprint


def test_several_processes_build_the_same_table_at_once(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("".join(f"prompt {index}\n" for index in range(20_000)))
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(3), context.Queue()
    workers = [context.Process(target=lambda: answers.put(build(str(file), start))) for _ in range(3)]
    for worker in workers:
        worker.start()
    fingerprints = {answers.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert fingerprints == {TextFilePrompts(str(file)).fingerprint}
    assert [path.suffix for path in folder.iterdir()] == [".arrow"]
