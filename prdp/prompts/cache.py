"""Tables of prompts, built once from what the user has and found again by what they were built from.

<cache>/prompts/<name>-<key>.arrow; <cache> is $PRDP_CACHE, or ~/.cache/prdp. Removing the folder is always safe.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prdp.prompts.options import check_flag, check_text
from prdp.prompts.table import BUILDER_VERSION, DamagedTableError, PromptTable, Row, write_table
from prdp.support.storage import StorageError, remove_leftovers, write_atomically

_LEFTOVER_SECONDS = 86_400.0
"""After so long nobody writes a file any more that was not finished."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cleaning:
    """What happens to a prompt on its way into the table.

    Attributes:
        template: '{}' stands for the prompt, as in 'a painting of a {}'.
        unique: True keeps the first of equal prompts only, with its metadata.
        skip_empty: True leaves empty prompts out, and null ones; False refuses them.
    """

    template: str = "{}"
    unique: bool = False
    skip_empty: bool = False

    def __post_init__(self) -> None:
        check_text("template", self.template, optional=False)
        check_flag("unique", self.unique)
        check_flag("skip_empty", self.skip_empty)
        if "{}" not in self.template:
            raise ValueError(f"prompts template is {self.template!r}, expected it to contain {{}}")

    def apply(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows that stay, stripped and put into the template.

        Raises:
            ValueError: a prompt that is empty, is not text or holds a NUL character, by place.
        """
        seen: set[bytes] = set()
        for text, metadata, place in rows:
            if text is not None and not isinstance(text, str):
                raise ValueError(f"{place}: the prompt is {text!r:.80}, expected text")
            stripped = "" if text is None else text.strip()
            if not stripped:
                if self.skip_empty:
                    continue
                kind = "null" if text is None else "empty"
                raise ValueError(f"{place}: the prompt is {kind}; skip_empty=true leaves such rows out")
            if "\0" in stripped:
                raise ValueError(f"{place}: the prompt {stripped!r:.80} holds a NUL character, expected text without")
            if self.unique:
                digest = hashlib.blake2b(stripped.encode("utf-8", "surrogatepass"), digest_size=16).digest()
                if digest in seen:
                    continue
                seen.add(digest)
            yield Row(self.template.replace("{}", stripped), metadata, place)


def cache_folder() -> Path:
    """Where tables are kept: $PRDP_CACHE, or ~/.cache/prdp."""
    return Path(os.environ.get("PRDP_CACHE") or "~/.cache/prdp").expanduser()


def file_identity(file: Path) -> list[Any]:
    """What tells a file from another, or from itself after an edit: place, size in bytes and time in nanoseconds."""
    status = file.stat()
    return [str(file.resolve()), status.st_size, status.st_mtime_ns]


def cached_table(
    kind: str,
    files: Sequence[Path],
    options: Mapping[str, Any],
    rows: Callable[[], Iterable[Row]],
    cleaning: Cleaning,
    name: str = "",
) -> Path:
    """The table of a source: found in the cache, or built there from `rows()`.

    Several processes may build the same table at once: each writes a file of its own, and the last one renamed into
    place is equal to the others.

    Args:
        kind: of the reader; a part of the key.
        files: what the rows come from; an edit of one of them gives another key.
        options: what else the rows depend on; JSON-able.
        name: for the file; the first file's by default.

    Raises:
        ValueError: of the reader, a source without a prompt, a file that changed while it was read, or a cache folder
            that cannot be written.
    """
    identity = [file_identity(file) for file in files]
    described = [kind, BUILDER_VERSION, identity, dict(options), vars(cleaning)]
    key = hashlib.blake2b(json.dumps(described, sort_keys=True, default=str).encode(), digest_size=10).hexdigest()
    name = name or files[0].name
    path = cache_folder() / "prompts" / f"{_plain(name)}-{key}.arrow"
    if _is_whole(path):
        return path

    def build(file: Any) -> None:
        if not write_table(file, cleaning.apply(rows())):
            raise ValueError(f"{_named(files, name)} holds no prompt")

    remove_leftovers(path.parent, files_older_than=_LEFTOVER_SECONDS)
    try:
        write_atomically(path, build)
    except StorageError as error:
        raise ValueError(f"the cache of prompts: {error}; PRDP_CACHE names another folder for it") from error
    if [file_identity(file) for file in files] != identity:
        path.unlink(missing_ok=True)
        raise ValueError(f"{_named(files, name)} changed while it was read; try again")
    return path


def _is_whole(path: Path) -> bool:
    try:
        PromptTable(path)
    except FileNotFoundError:
        return False
    except DamagedTableError as error:
        _log.warning("building anew: %s", error)
        return False
    return True


def _named(files: Sequence[Path], name: str) -> str:
    if not files:
        return f"prompts of {name}"
    return f"prompts file {files[0]}" if len(files) == 1 else f"the {len(files)} prompts files from {files[0]} on"


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)[:60]
