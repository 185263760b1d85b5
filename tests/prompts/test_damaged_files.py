"""A damaged or odd source is one message and exit code 2, whichever command meets it."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from prdp.cli import main as prdp
from prdp.prompts.arrow_records import arrow_records
from prdp.prompts.cache import cache_folder
from prdp.prompts.hf_dataset import HfDatasetPrompts
from prdp.prompts.table import DamagedTableError, PromptTable
from prdp.prompts.text_file import TextFilePrompts


def parquet_cut_in(part: str, path: Path) -> None:
    """A Parquet file with a damaged `part`."""
    parquet.write_table(pa.table({"prompt": [f"a cat {i}" for i in range(2000)]}), path, compression="snappy")
    raw = bytearray(path.read_bytes())
    if part == "end":
        raw = raw[: len(raw) // 2]
    else:
        raw[100:2000] = bytes(1900)
    path.write_bytes(raw)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One source of each kind of damage."""
    folder = tmp_path_factory.mktemp("damaged")
    for part in ("end", "page"):
        parquet_cut_in(part, folder / f"{part}.parquet")
    lines = b"".join(json.dumps({"prompt": f"a cat {i}"}).encode() + b"\n" for i in range(50))
    (folder / "cut.jsonl").write_bytes(lines[:-5])
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(lines)[:-20])
    (folder / "flipped.csv.gz").write_bytes(gzip.compress(b"prompt\na cat\n")[:-8] + bytes(8))
    (folder / "zip.csv").write_bytes(b"PK\x03\x04\x14\0\0\0\x08\0" + bytes(50))
    (folder / "cut.csv").write_bytes(b'prompt,n\na cat,1\n"a d')
    (folder / "cut.json").write_bytes(b'["a cat", "a d')
    (folder / "binary.txt").write_bytes(bytes(range(128, 256)))
    (folder / "empty.parquet").touch()
    os.mkfifo(folder / "pipe.txt")
    (folder / "folder.txt").mkdir()
    (folder / "device.txt").symlink_to("/dev/zero")
    return folder


NAMES = (
    "end.parquet", "page.parquet", "cut.jsonl", "cut.jsonl.gz", "flipped.csv.gz", "zip.csv", "cut.csv", "cut.json",
    "binary.txt", "empty.parquet", "pipe.txt", "folder.txt", "device.txt", "missing.txt",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_command_refuses_it_by_name(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["experiment=shapes_smoke", "reward=redness", "prompts=file", f"output_dir={folder}/run"]
    sources = [f"prompts.train.path={folder / name}", f"prompts.heldout.path={folder / name}"]
    commands = [["prompts", "stats", str(folder / name)]]
    if name in ("page.parquet", "cut.jsonl.gz", "device.txt"):
        commands += [["validate", *run, *sources], ["train", *run, *sources]]
    for words in commands:
        assert prdp(words) == 2, words
        shown = capsys.readouterr().err
        assert name in shown and "Traceback" not in shown
    assert not (folder / "run").exists()


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "closed.txt"
    file.write_text("a cat\n")

    def refuse(self: Path, *arguments: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        with pytest.raises(ValueError, match=r"closed\.txt cannot be read: Permission denied"):
            TextFilePrompts(str(file))


def test_offsets_that_point_nowhere_do_not_end_the_process() -> None:
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 2**30, 5)))
    column = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"a cat"))
    batch = pa.record_batch([column], names=["prompt"])
    with pytest.raises(ValueError, match="list is damaged after row 0: In column 0: Invalid"):
        list(arrow_records("list", [batch]))


def test_a_damaged_description_of_a_saved_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a cat"]}).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"saved cannot be loaded.*KeyError: '_"):
        HfDatasetPrompts(str(tmp_path / "saved"))


def test_a_table_in_the_cache_that_lost_rows(tmp_path: Path) -> None:
    file = tmp_path / "lost.txt"
    file.write_text("a cat\na dog\n")
    source = TextFilePrompts(str(file))
    path = next((cache_folder() / "prompts").glob("lost.txt-*.arrow"))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"rows": 2', b'"rows": 3'))
    with pytest.raises(DamagedTableError, match="holds 2 rows, expected 3"):
        PromptTable(path)
    assert TextFilePrompts(str(file)).fingerprint == source.fingerprint
    assert path.read_bytes() == whole
