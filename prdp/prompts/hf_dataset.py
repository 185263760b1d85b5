"""Prompts from a Hugging Face dataset: saved to disk, a folder of data files, or from the hub."""

from __future__ import annotations

import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prdp.prompts.arrow_records import arrow_records
from prdp.prompts.cache import Cleaning, cached_table
from prdp.prompts.options import check_text
from prdp.prompts.records import Columns
from prdp.prompts.table import PromptTable, Row

if TYPE_CHECKING:
    import datasets

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SAVED = ("state.json", "dataset_dict.json")
_ON_DAMAGE = (
    *(LookupError, TypeError, AttributeError, RuntimeError, ImportError, EOFError),
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
)
"""What the library raises, beside its own errors, on damaged files, loading scripts and kinds it cannot read."""


class HfDatasetPrompts(PromptTable):
    """One prompt a row of one split of a dataset; other columns, pictures for instance, are not decoded.

    Needs the library `datasets` (pip install 'prdp[datasets]'). With HF_HUB_OFFLINE=1 only what its cache holds is
    used. A hub dataset is asked for changes at every start, unless `revision` is a whole commit hash.

    Args:
        path: a folder of `save_to_disk`, a folder of data files, or a hub id such as 'owner/name'.
        split: such as 'train' or 'test'; a folder of `save_to_disk` may hold only one and then needs none.
        name: the configuration, for hub datasets that have several.
        revision: branch, tag or commit of a hub dataset.
        prompt_column: None takes the only column called prompt, caption or text.
        category_column: becomes `category` in the metadata.
        metadata_columns: travel along under their names; 'all' takes every column but the prompt's.
        template, unique, skip_empty: see `Cleaning`.

    Raises:
        ValueError: no such dataset, split or column, no prompt, a column that JSON cannot hold.
    """

    def __init__(
        self,
        path: str,
        split: str | None = None,
        name: str | None = None,
        revision: str | None = None,
        prompt_column: str | None = None,
        category_column: str | None = None,
        metadata_columns: str | Sequence[str] = (),
        template: str = "{}",
        unique: bool = False,
        skip_empty: bool = False,
    ) -> None:
        check_text("path", path, optional=False)
        for option, value in (("split", split), ("name", name), ("revision", revision)):
            check_text(option, value)
        choice = Columns(prompt_column, category_column, metadata_columns)
        folder = Path(path).expanduser()
        files = sorted(file for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else []
        where = f"dataset {path}" + (f", split {split}" if split else "")
        pinned = bool(files) or _COMMIT.fullmatch(revision or "") is not None
        loaded = None if pinned else _load(where, path, split, name, revision)
        key = {
            "path": path,
            "split": split,
            "name": name,
            "revision": revision,
            "content": None if loaded is None else loaded._fingerprint,
            "columns": choice.key,
        }

        def rows() -> Iterator[Row]:
            dataset = _load(where, path, split, name, revision) if loaded is None else loaded
            choice.check(where, dataset.column_names)
            arrow = dataset.select_columns(choice.wanted(dataset.column_names)).with_format("arrow")
            batches = (batch for part in arrow.iter(batch_size=1000) for batch in part.to_batches())
            for record, place in arrow_records(where, batches):
                yield choice.row(record, place)

        label = Path(path).name + (f"-{split}" if split else "")
        super().__init__(
            cached_table("hf_dataset", files, key, rows, Cleaning(template, unique, skip_empty), name=label)
        )


def _load(where: str, path: str, split: str | None, name: str | None, revision: str | None) -> datasets.Dataset:
    try:
        import datasets
        import yaml
    except ModuleNotFoundError:
        raise ValueError(
            f"{where}: reading Hugging Face datasets needs the library datasets: pip install 'prdp[datasets]'"
        ) from None
    folder = os.path.expanduser(path)
    offline = " (HF_HUB_OFFLINE=1 restricts the search to the local cache)" if datasets.config.HF_HUB_OFFLINE else ""
    saved = any((Path(folder) / marker).exists() for marker in _SAVED)
    try:
        if saved:
            found: Any = datasets.load_from_disk(folder)
        else:
            source = folder if os.path.isdir(folder) else path
            found = datasets.load_dataset(source, name=name, split=split, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{where} cannot be loaded{offline}: {error}") from error
    except (*_ON_DAMAGE, yaml.YAMLError) as error:
        raise ValueError(f"{where} cannot be loaded{offline}: {type(error).__name__}: {error}") from error
    if isinstance(found, datasets.Dataset):
        if saved and split is not None and not (split.isidentifier() and str(found.split or split) == split):
            raise ValueError(
                f"{where}: it holds a single split{f', {found.split}' if found.split else ''}; split must be null or "
                f"its name, got {split}"
            )
        return found
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        raise ValueError(f"{where}: split must name one of {', '.join(found)}, got {split}")
    return found[split]
