"""What was there stays whole, whatever happens to what was being written."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prdp.support.errors import UserError
from prdp.support.storage import (
    StorageError,
    TensorFileError,
    append,
    atomic_directory,
    load_tensors,
    open_to_append,
    remove_leftovers,
    save_tensors,
    write_atomically,
)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse to write files beyond `size` bytes, as a full disk would."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full_disk(*_: object) -> None:
    """In the place of a system call."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_bytes_and_writers_replace_a_file(tmp_path):
    target = tmp_path / "new" / "file"
    write_atomically(target, b"one")
    assert target.read_bytes() == b"one"
    write_atomically(target, lambda file: file.write(b"two"))
    assert content(tmp_path) == {"new/file": b"two"}


def test_full_disk_leaves_the_old_file_and_tells_how_much_room_is_missing(tmp_path):
    target = tmp_path / "file"
    write_atomically(target, b"old")
    for text in (b"x" * 200_000, lambda file: file.write(b"x" * 200_000)):
        with largest_file(100_000), pytest.raises(StorageError) as caught:
            write_atomically(target, text)
        assert content(tmp_path) == {"file": b"old"}
        assert caught.value.errno == errno.EFBIG
        message = str(caught.value)
        assert message.startswith(f"could not write {target}: File too large")
        assert "bytes free" in message
        assert isinstance(caught.value, UserError)
    with largest_file(100_000), pytest.raises(StorageError, match=r"\(200,000 bytes needed, [\d,]+ bytes free\)"):
        write_atomically(target, b"x" * 200_000)


def test_disk_that_fills_at_the_last_flush(tmp_path, monkeypatch):
    target = tmp_path / "file"
    write_atomically(target, b"old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StorageError, match=r"No space left on device .*; free some room"):
        write_atomically(target, b"new")
    assert content(tmp_path) == {"file": b"old"}


def test_error_of_the_writer_passes_as_it_is(tmp_path):
    def writer(file: object) -> None:
        raise FileNotFoundError("the input is gone")

    write_atomically(tmp_path / "file", b"old")
    with pytest.raises(FileNotFoundError, match="the input is gone"):
        write_atomically(tmp_path / "file", writer)
    assert content(tmp_path) == {"file": b"old"}


def test_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"could not write .*file/below"):
        write_atomically(tmp_path / "file" / "below", b"text")


def test_directory_appears_whole_and_replaces_the_old_one(tmp_path):
    target = tmp_path / "folder"
    for text in (b"one", b"two"):
        with atomic_directory(target) as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / text.decode()).write_bytes(text)
            assert folder != target
    assert content(tmp_path) == {"folder/deep/two": b"two"}


@pytest.mark.parametrize("error", [ValueError("bad"), OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_failed_directory_leaves_the_old_one(tmp_path, error):
    target = tmp_path / "folder"
    with atomic_directory(target) as folder:
        (folder / "file").write_bytes(b"old")
    expected = StorageError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught, atomic_directory(target) as folder:
        (folder / "file").write_bytes(b"new, longer")
        raise error
    assert content(tmp_path) == {"folder/file": b"old"}
    if expected is StorageError:
        assert "more than 11 bytes needed" in str(caught.value)


def test_directory_that_cannot_be_moved_into_place_leaves_the_old_one(tmp_path, monkeypatch):
    target = tmp_path / "folder"
    with atomic_directory(target) as folder:
        (folder / "file").write_bytes(b"old")
    rename = os.rename

    def failing(source: Path, destination: Path) -> None:
        if Path(destination) == target and (Path(source) / "file").read_bytes() == b"new":
            full_disk()
        rename(source, destination)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(StorageError, match="could not write"), atomic_directory(target) as folder:
        (folder / "file").write_bytes(b"new")
    assert content(tmp_path) == {"folder/file": b"old"}


def test_message_names_the_destination_not_the_temporary_folder(tmp_path):
    target = tmp_path / "folder"
    with largest_file(1000), pytest.raises(StorageError) as caught, atomic_directory(target) as folder:
        save_tensors(folder / "file", {"weight": np.zeros(1000)})
    assert str(caught.value).startswith(f"could not write {target / 'file'}: ")
    assert "partial" not in str(caught.value)
    assert content(tmp_path) == {}


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    write_atomically(tmp_path / "file", b"whole")
    (tmp_path / ".partial-12345678-file").write_bytes(b"half")
    (tmp_path / ".partial-12345678-folder").mkdir()
    (tmp_path / ".partial-12345678-folder" / "file").write_bytes(b"half")
    assert len(remove_leftovers(tmp_path)) == 2
    assert content(tmp_path) == {"file": b"whole"}
    assert remove_leftovers(tmp_path / "nowhere") == []


DTYPES = ("bool", "int8", "uint8", "int16", "int32", "int64", "uint64", "float16", "float32", "float64")


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)),
        max_size=5,
    )
)
def test_tensors_come_back_bit_for_bit(tmp_path_factory, specification):
    path = tmp_path_factory.mktemp("tensors") / "file.safetensors"
    generator = np.random.default_rng(0)
    tensors = {
        name: (generator.standard_normal(shape) * 100).astype(dtype) for name, (dtype, shape) in specification.items()
    }
    save_tensors(path, tensors)
    loaded = load_tensors(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        tensor = np.asarray(tensor)
        assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
        assert loaded[name].tobytes() == tensor.tobytes()
        assert loaded[name].flags.writeable


def test_scalars_views_and_foreign_byte_order_are_saved_by_value(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    tensors: dict[str, Any] = {
        "transposed": base.T,
        "strided": base[:, ::2, 1:],
        "fortran": np.asfortranarray(base),
        "big_endian": base.astype(">f4"),
        "scalar": np.float32(0.1),
        "flag": np.bool_(True),
        "count": np.array(3, np.int64),
    }
    save_tensors(tmp_path / "file", {name: np.asarray(value) for name, value in tensors.items()})
    loaded = load_tensors(tmp_path / "file")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(loaded[name], tensor)
        assert loaded[name].shape == np.shape(tensor)
    assert loaded["count"].dtype == np.int64
    assert loaded["flag"].dtype == bool


@pytest.mark.parametrize("value", [np.array(["text"]), np.array([None]), np.zeros(2, complex)])
def test_what_safetensors_cannot_hold_is_named(tmp_path, value):
    with pytest.raises(TypeError, match=r"tensor 'odd' has dtype"):
        save_tensors(tmp_path / "file", {"odd": value})
    assert content(tmp_path) == {}


def test_full_disk_leaves_the_old_tensors(tmp_path):
    save_tensors(tmp_path / "file", {"weight": np.ones(10)})
    before = content(tmp_path)
    with largest_file(10_000), pytest.raises(StorageError, match=r"file: .*\(800,000 bytes needed, [\d,]+ bytes"):
        save_tensors(tmp_path / "file", {"weight": np.zeros(100_000)})
    assert content(tmp_path) == before


def write_whole(path: Path) -> bytes:
    """A whole file and its bytes."""
    save_tensors(path, {"weight": np.arange(1000.0)})
    return path.read_bytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: whole[:-1], r"\d+ bytes do not match its header, so it is truncated"),
        (lambda whole: whole + b"x", "do not match its header"),
        (lambda whole: whole[:40], r"cut off inside its header: 40 bytes, of which \d+ are header"),
        (lambda whole: whole[:5], "holds 5 bytes, a header alone needs 8"),
        (lambda whole: b"", "holds 0 bytes"),
        (lambda whole: b"reward: 0.5\nepoch: 3\n" * 9, r"looks like text, starting with 'reward: 0\.5"),
        (lambda whole: pickle.dumps({"weight": [1.0]}, protocol=4), "a Python pickle"),
        (lambda whole: b"PK\x03\x04" + bytes(100), r"a zip archive, such as torch\.save writes"),
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (lambda whole: bytes(range(128, 255)), "does not start with a header"),
    ],
)
def test_files_that_are_not_whole_are_named_with_what_is_wrong(tmp_path, damage, message):
    path = tmp_path / "file.safetensors"
    path.write_bytes(damage(write_whole(path)))
    with pytest.raises(TensorFileError, match=rf"file\.safetensors is not a whole safetensors file: .*{message}"):
        load_tensors(path)


def test_absent_files_and_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tensor file .*nothing"):
        load_tensors(tmp_path / "nothing")
    with pytest.raises(TensorFileError, match="is a folder"):
        load_tensors(tmp_path)


def test_an_appended_text_is_there_as_a_whole_or_not_at_all(tmp_path):
    target = tmp_path / "log"
    append(target, "one\n")
    append(target, "zwölf\n")
    with largest_file(target.stat().st_size + 4), pytest.raises(StorageError, match=r"could not write .*log: File too"):
        append(target, "x" * 100)
    assert target.read_text() == "one\nzwölf\n"


@pytest.mark.parametrize("kind", ["link", "link to nowhere", "pipe", "folder"])
def test_what_is_no_plain_file_is_not_appended_to(tmp_path, kind):
    target, other = tmp_path / "log", tmp_path / "other"
    if kind == "pipe":
        os.mkfifo(target)
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to(other)
        if kind == "link":
            other.write_text("mine")
    with pytest.raises(StorageError, match=f"could not write {target}: "):
        open_to_append(target)
    assert not other.exists() or other.read_text() == "mine"


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_have_the_mode_that_the_umask_gives(tmp_path, umask):
    """Also those that libraries make for their owner alone, as safetensors does."""
    before = os.umask(umask)
    try:
        save_tensors(tmp_path / "alone.safetensors", {"a": np.zeros(3, np.float32)})
        append(tmp_path / "log", "line\n")
        with atomic_directory(tmp_path / "weights") as folder:
            save_tensors(folder / "a.safetensors", {"a": np.zeros(3, np.float32)})
            (folder / "private").mkdir(mode=0o700)
            (folder / "private" / "b").touch(mode=0o600)
            (folder / "script").touch(mode=0o711)
    finally:
        os.umask(before)
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    script = modes.pop("weights/script")
    assert script == 0o711 & ~umask | (0o666 & ~umask if umask == 0o077 else 0)
    folders = {"weights", "weights/private"}
    assert modes == {name: (0o777 if name in folders else 0o666) & ~umask for name in modes}


def test_a_link_to_a_folder_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    (tmp_path / "weights").symlink_to(tmp_path / "other")
    with atomic_directory(tmp_path / "weights") as folder:
        (folder / "file").write_text("new")
    assert content(tmp_path) == {"other/file": b"mine", "weights/file": b"new"}


def test_leftovers_of_all_depths_and_ages(tmp_path):
    for name in ("a/.partial-1-x/file", "a/b/.partial-2-y", ".tmpAb3xYz", "a/.tmpAb3xYz", ".temporary", ".tmp", "keep"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    os.utime(tmp_path / "a" / ".tmpAb3xYz", (1, 1))
    assert remove_leftovers(tmp_path / "a", files_older_than=60) == [".partial-1-x", ".tmpAb3xYz"]
    assert sorted(remove_leftovers(tmp_path, deep=True)) == [".partial-2-y", ".tmpAb3xYz"]
    assert content(tmp_path).keys() == {".temporary", ".tmp", "keep"}
