"""Weights of rewards: found on the disk or on the hub, checked before they are used, bound by name and shape.

Only safetensors and `torch.load(weights_only=True)` are read. `path` is always a file, a folder or a hub id, in this
order; HF_HUB_OFFLINE=1 restricts hub ids to what the local cache holds.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prdp.support.json_lines import load_json

if TYPE_CHECKING:
    import torch

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HTTP_CLIENTS = ("httpx", "httpx2", "requests")
_NAMED = 4  # Tensors that an error names before it counts the rest.

Tensors = dict[str, "torch.Tensor"]


def find_file(key: str, path: str, name: str | None = None, fetch: bool = True) -> Path | None:
    """The file that `path` speaks of: itself, or `name` in a folder or a hub repository.

    Args:
        key: of the configuration, for messages, such as 'path'.
        path: a file, a folder or a hub id.
        name: of the file inside a folder or a repository; None where only a file will do.
        fetch: download what is on the hub and not in the cache; otherwise None is returned for it, unless
            HF_HUB_OFFLINE forbids the download that would be needed later.

    Raises:
        ValueError: naming the key, what was looked for and where.
    """
    place = Path(os.path.expanduser(path))
    if place.is_file():
        return place
    if name is None:
        raise ValueError(f"{key}={path}: there is no file {place}")
    if place.is_dir():
        if (place / name).is_file():
            return place / name
        there = sorted(entry.name for entry in place.iterdir())
        raise ValueError(f"{key}={path}: the folder holds no {name}, only {', '.join(there[:8]) or 'nothing'}")
    if _HUB_ID.fullmatch(path):
        return _hub_file(key, path, name, fetch)
    raise ValueError(f"{key}={path}: there is no such file or folder, and it is no hub id (owner/name)")


def find_folder(key: str, path: str, patterns: Sequence[Sequence[str]], fetch: bool = True) -> Path | None:
    """The folder that `path` speaks of: itself, or the local copy of a hub repository.

    Args:
        key: as in `find_file`.
        path: a folder or a hub id.
        patterns: alternatives of file names needed; a repository gives the first alternative of which it has files.
        fetch: as in `find_file`.

    Raises:
        ValueError: naming the key and what was looked for.
    """
    place = Path(os.path.expanduser(path))
    if place.is_dir():
        return place
    if place.exists():
        raise ValueError(f"{key}={path}: {place} is a file, must be a folder or a hub id")
    if not _HUB_ID.fullmatch(path):
        raise ValueError(f"{key}={path}: there is no such folder, and it is no hub id (owner/name)")
    return _hub_folder(key, path, patterns, fetch)


def model_files(key: str, folder: Path) -> list[Path]:
    """The files of a transformers model's weights, whole or in parts.

    Raises:
        ValueError: none, or an index that names files that are not there.
    """
    names = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
    file = first_of(key, folder, names)
    if file.suffix != ".json":
        return [file]
    parts = sorted(set(read_json(key, file).get("weight_map", {}).values()))
    missing = [name for name in parts if not (folder / name).is_file()]
    if missing or not parts:
        raise ValueError(f"{key}: {file} speaks of {', '.join(missing[:4]) or 'no files'}, not in {folder}")
    return [folder / name for name in parts]


def first_of(key: str, folder: Path, names: Iterable[str]) -> Path:
    """The first of these files that the folder holds, or ValueError."""
    names = list(names)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{key}: {folder} holds no {' and no '.join(names)}")


def read_json(key: str, file: Path) -> dict[str, Any]:
    """A file that holds a JSON object, or ValueError."""
    try:
        content = load_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{key}: {file} is missing") from None
    except ValueError as error:
        raise ValueError(f"{key}: {file} is half-written or damaged: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{key}: {file} must hold a JSON object, holds a {type(content).__name__}")
    return content


def read_tensors(key: str, file: Path, inside: Sequence[str] = (), shapes_only: bool = False) -> Tensors:
    """Tensors by name, on the CPU; with `shapes_only` on the meta device, which reads next to nothing.

    Args:
        key: of the configuration, for messages.
        file: a safetensors file, or what torch.save wrote of a state dict.
        inside: keys of a torch file under which the state dict may stand, such as 'state_dict'; where it has none of
            them, the file itself must be the state dict.
        shapes_only: read names and shapes alone.

    Raises:
        ValueError: the file is truncated, of another format, or holds more than tensors.
    """
    if file.suffix == ".safetensors":
        return _read_safetensors(key, file, shapes_only)
    content = _read_torch(key, file, shapes_only)
    for name in inside:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    import torch

    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{key}: {file} holds a {type(content).__name__}, must hold a state dict (name -> tensor)")
    strange = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise ValueError(f"{key}: {file} holds {_listed(strange)}, which are no tensors; expected a state dict")
    return {str(name): value.detach() for name, value in content.items()}


def check_holds_data(key: str, file: Path) -> None:
    """Refuse a file of torch.save that could run code, before a package of others loads it in its own way.

    Raises:
        ValueError: the file is truncated, of another format, or holds more than data.
    """
    if file.suffix == ".safetensors":
        _read_safetensors(key, file, shapes_only=True)
    else:
        _read_torch(key, file, shapes_only=True)


def bind(key: str, module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], ignore: Sequence[str] = ()) -> None:
    """Give every parameter and buffer of a module on the meta device its tensor.

    Position numbers, which are no weights, are made anew.

    Args:
        key: of the configuration, or a file, for messages.
        module: built on the meta device; its tensors become the given ones, not copies.
        tensors: by the module's own names.
        ignore: patterns of names that may be left over in `tensors`.

    Raises:
        ValueError: naming tensors that are missing, left over or of another shape.
    """
    import torch

    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {
        name: value for name, value in tensors.items()
        if name in wanted or not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore)
    }
    problems = []
    if missing := sorted(wanted.keys() - given.keys()):
        problems.append(f"lacks {_listed(missing)}")
    if unknown := sorted(given.keys() - wanted.keys()):
        problems.append(f"has {_listed(unknown)} too many")
    if reshaped := [
        f"{name} is {list(given[name].shape)} instead of {list(shape)}"
        for name, shape in wanted.items() if name in given and tuple(given[name].shape) != shape
    ]:
        problems.append(f"has other shapes: {_listed(reshaped)}")
    if problems:
        raise ValueError(f"{key}: the weights do not fit {type(module).__name__}: {'; '.join(problems)}")
    module.load_state_dict(given, strict=True, assign=True)
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta and name.endswith("position_ids"):
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, torch.arange(buffer.shape[-1]).expand(buffer.shape))


@lru_cache(maxsize=64)
def _sha256(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(files: Iterable[Path]) -> str:
    """First 12 hex digits of a file's SHA-256, as the hub shows it; of several, of their digests in order.

    Reads the files once whole: about a second for 1 to 2 GB.
    """
    digests = []
    for file in files:
        status = file.stat()
        digests.append(_sha256(str(file.resolve()), status.st_size, status.st_mtime_ns))
    if len(digests) == 1:
        return digests[0][:12]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]


def _read_safetensors(key: str, file: Path, shapes_only: bool) -> Tensors:
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as content:
            names = list(content.keys())
            if shapes_only:
                shapes = {name: content.get_slice(name).get_shape() for name in names}
                return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
            return {name: content.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{key}: {file} is not a whole safetensors file: {error}") from None


def _read_torch(key: str, file: Path, shapes_only: bool) -> Any:
    import torch

    where = "meta" if shapes_only else "cpu"
    try:
        return torch.load(file, map_location=where, weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{key}: {file} is damaged, of another format, or holds more than tensors, which may run foreign code and "
            "is not loaded"
        ) from None
    except (RuntimeError, EOFError, OSError, LookupError, AttributeError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{key}: {file} is not a whole file of torch.save: {reason}") from None


def _hub_file(key: str, repository: str, name: str, fetch: bool) -> Path | None:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, name)
    if isinstance(cached, str):
        return Path(cached)
    if constants.HF_HUB_OFFLINE:
        raise ValueError(_not_cached(key, repository, name))
    if not fetch:
        return None
    with _hub_errors(key, repository):
        return Path(hf_hub_download(repository, name))


def _hub_folder(key: str, repository: str, patterns: Sequence[Sequence[str]], fetch: bool) -> Path | None:
    from huggingface_hub import constants, list_repo_files, snapshot_download, try_to_load_from_cache

    if constants.HF_HUB_OFFLINE or not fetch:
        known = (try_to_load_from_cache(repository, name) for name in ("config.json", "tokenizer_config.json"))
        cached = next((Path(file).parent for file in known if isinstance(file, str)), None)
        # A folder that holds only what another model of the repository needs is completed by the download.
        if cached is not None and any(any(cached.glob(alternative[0])) for alternative in patterns):
            return cached
        if constants.HF_HUB_OFFLINE:
            raise ValueError(_not_cached(key, repository, " or ".join(alternative[0] for alternative in patterns)))
        return None
    with _hub_errors(key, repository):
        names = list_repo_files(repository)
        for alternative in patterns:
            if any(fnmatch.fnmatchcase(name, alternative[0]) for name in names):
                return Path(snapshot_download(repository, allow_patterns=list(alternative)))
    wanted = " nor ".join(alternative[0] for alternative in patterns)
    raise ValueError(f"{key}={repository}: the hub repository holds no {wanted}")


@contextlib.contextmanager
def _hub_errors(key: str, repository: str) -> Iterator[None]:
    """Whatever keeps the hub from answering becomes a ValueError that says so."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except Exception as error:
        # Listing a repository lets the errors of its HTTP client through, which is another one in other versions.
        by_client = type(error).__module__.partition(".")[0] in _HTTP_CLIENTS
        if not by_client and not isinstance(error, (HfHubHTTPError, HFValidationError, OSError)):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{key}={repository}: there is no such file or folder, and the hub does not give it: {reason}"
        ) from error


def _not_cached(key: str, repository: str, name: str) -> str:
    return (
        f"{key}={repository}: there is no such file or folder, and {name} of the hub repository of that name is not in "
        "the local cache, which HF_HUB_OFFLINE=1 restricts the run to"
    )


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest
