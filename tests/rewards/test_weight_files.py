"""Finding, reading and binding weights: what is missing, damaged or foreign is named."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from prdp.rewards.weight_files import bind, digest, find_file, find_folder, first_of, read_json, read_tensors


def test_a_path_is_a_file_a_folder_or_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(b"x")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_file("path", str(file)) == file
    assert find_file("path", "~/weights.pt") == file
    assert find_file("path", str(tmp_path), "weights.pt") == file
    assert find_folder("path", str(tmp_path), ()) == tmp_path
    for path, name, message in [
        (str(tmp_path / "no.pt"), None, r"path=.*no\.pt: there is no file"),
        (str(tmp_path), "other.pt", r"holds no other\.pt, only weights\.pt"),
        ("a/b/c", "other.pt", "no such file or folder, and it is no hub id"),
        ("owner/name", "other.pt", r"other\.pt of the hub repository .* HF_HUB_OFFLINE=1"),
    ]:
        with pytest.raises(ValueError, match=message):
            find_file("path", path, name)
    with pytest.raises(ValueError, match=r"is a file, must be a folder"):
        find_folder("path", str(file), ())
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE=1"):
        find_folder("path", "owner/name", ())
    with pytest.raises(ValueError, match=r"holds no a and no b"):
        first_of("path", tmp_path, ["a", "b"])


def test_a_cached_hub_file_is_found_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "weights.pt").write_bytes(b"x")
    (snapshot / "config.json").write_text("{}")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0123")
    from huggingface_hub import file_download

    monkeypatch.setattr(file_download.constants, "HF_HUB_CACHE", str(tmp_path))
    assert find_file("path", "owner/name", "weights.pt") == snapshot / "weights.pt"
    patterns = (("*.safetensors",), ("*.pt", "*.json"))
    assert find_folder("path", "owner/name", patterns) == snapshot
    # Only the configuration is there, as another model's start may leave it.
    (snapshot / "weights.pt").unlink()
    with pytest.raises(ValueError, match=r"\*\.safetensors or \*\.pt of the hub repository .* HF_HUB_OFFLINE=1"):
        find_folder("path", "owner/name", patterns)
    monkeypatch.setattr(file_download.constants, "HF_HUB_OFFLINE", False)
    assert find_folder("path", "owner/name", patterns, fetch=False) is None


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_tensors_survive_and_shapes_cost_nothing(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"weights.{suffix}"
    tensors = {"a": torch.randn(3, 2), "b": torch.ones(4, dtype=torch.bfloat16)}
    if suffix == "pt":
        torch.save({"state_dict": tensors, "epoch": 3}, file)
    else:
        save_file(tensors, file)
    read = read_tensors("path", file, inside=("state_dict",))
    assert all(torch.equal(read[name], value) for name, value in tensors.items())
    shapes = read_tensors("path", file, inside=("state_dict",), shapes_only=True)
    assert {name: (value.shape, value.is_meta) for name, value in shapes.items()} == {
        name: (value.shape, True) for name, value in tensors.items()
    }


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt"
    torch.save({"a": torch.randn(5000)}, whole)
    save_file({"a": torch.randn(5000)}, tmp_path / "whole.safetensors")
    for source in (whole, tmp_path / "whole.safetensors"):
        half = tmp_path / f"half{source.suffix}"
        half.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
        with pytest.raises(ValueError, match=rf"path: .*half\{source.suffix} is not a whole"):
            read_tensors("path", half)
    for content, message in [
        (b"", "is not a whole file"),
        (b"<!DOCTYPE html>", "is (damaged|not a whole)"),
    ]:
        (tmp_path / "page.pt").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_tensors("path", tmp_path / "page.pt")
    torch.save({"a": torch.zeros(1), "lr": 0.1}, tmp_path / "mixed.pt")
    with pytest.raises(ValueError, match="holds lr, which are no tensors"):
        read_tensors("path", tmp_path / "mixed.pt")
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        read_json("path", tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"a":')
    with pytest.raises(ValueError, match="half-written"):
        read_json("path", tmp_path / "config.json")


def test_a_pickle_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"a": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(ValueError, match="may run foreign code and is not loaded"):
        read_tensors("path", tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


def test_binding_names_what_does_not_fit() -> None:
    def module() -> torch.nn.Module:
        with torch.device("meta"):
            return torch.nn.Linear(2, 3)

    right = {"weight": torch.randn(3, 2), "bias": torch.randn(3), "position_ids": torch.arange(3)}
    bound = module()
    bind("path", bound, right, ignore=("*position_ids",))
    assert torch.equal(bound.weight, right["weight"])
    for tensors, message in [
        ({"weight": right["weight"]}, "do not fit Linear: lacks bias"),
        ({**right, "weight": torch.zeros(2, 2)}, r"weight is \[2, 2\] instead of \[3, 2\]"),
        ({**right, "extra": torch.zeros(1)}, "has extra, position_ids too many"),
    ]:
        with pytest.raises(ValueError, match=message):
            bind("path", module(), tensors)


def test_a_hub_that_cannot_be_reached_is_told_by_key_and_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    unreachable = type("ConnectError", (Exception,), {"__module__": "httpx2._exceptions"})

    def refused(repository: str) -> list[str]:
        raise unreachable("Name or service not known")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", refused)
    with pytest.raises(ValueError, match=r"path=owner/name: .*the hub does not give it: Name or service not known"):
        find_folder("path", "owner/name", [["*.safetensors"]])


def test_the_digest_is_the_hubs(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"weights")
    two.write_bytes(b"others")
    assert digest([one]) == hashlib.sha256(b"weights").hexdigest()[:12]
    assert len({digest([one]), digest([two]), digest([one, two]), digest([two, one])}) == 4
