"""Folders of images as the scripts of other benchmarks expect them: their names, their metadata.

geneval         <set>/<model>/00000/metadata.jsonl, 00000/samples/0000.png      github.com/djghosh13/geneval
hpsv2           <set>/<model>/<style>/00000.jpg                                 github.com/tgxs002/HPSv2
t2i_compbench   <set>/<model>/<category>/samples/<prompt>_000000.png            github.com/Karine-Huang/T2I-CompBench
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prdp.evaluation.store import file_name
from prdp.support.errors import ConfigError
from prdp.support.picture_files import opened_picture
from prdp.support.storage import atomic_directory

if TYPE_CHECKING:
    from prdp.evaluation.store import Chunk
    from prdp.types import PromptBatch

FOLDER = "export"
TOOLS = ("geneval", "hpsv2", "t2i_compbench")
HPSV2_STYLES = ("anime", "concept-art", "paintings", "photo")
_STYLE_NAMES = {"animation": "anime", "concept art": "concept-art", "painting": "paintings"}
_GENEVAL_KEYS = ("tag", "include")
_NAME_LIMIT = 255
"""Bytes that file systems allow for a name."""
_JPEG_QUALITY = 95


def check_export(tool: str, prompt_set: str, prompts: PromptBatch) -> None:
    """Check that a prompt set can be exported for a tool.

    Raises:
        ConfigError: naming the prompt and what the tool's script needs of it.
    """
    where = f"export={tool}, prompts {prompt_set}"
    if tool == "hpsv2" and sorted(prompts.indices) != list(range(len(prompts))):
        raise ConfigError(f"{where}: the benchmark's numbers need the whole set; raise prompts_per_set")
    for text, metadata in zip(prompts.texts, prompts.metadata, strict=True):
        if tool == "geneval":
            missing = [key for key in _GENEVAL_KEYS if key not in metadata]
            if missing:
                raise ConfigError(
                    f"{where}: '{text}' has no {' and no '.join(missing)} in its metadata, which GenEval's script "
                    "reads; take the prompts from its evaluation_metadata.jsonl"
                )
        elif tool == "hpsv2":
            if _style(metadata) is None:
                raise ConfigError(
                    f"{where}: '{text}' has the category {metadata.get('category', '')!r}; HPSv2's benchmark needs one "
                    f"of {', '.join(HPSV2_STYLES)}"
                )
        elif "_" in text or "/" in text or len(f"{text}_000000.png".encode()) > _NAME_LIMIT:
            raise ConfigError(
                f"{where}: '{text}' cannot be in a file's name, where T2I-CompBench's scripts read the prompt: it must "
                f"be short and hold neither '_' nor '/'"
            )


def export(tool: str, folder: Path, chunks: Sequence[Chunk]) -> Path:
    """Write the images of one model on one prompt set for a tool; replaces what stood in `folder`.

    Prompts are numbered by their place in their source, so that a set that was taken whole gets the benchmark's own
    numbers.

    Raises:
        prdp.support.storage.StorageError: the disk is full; what was there before is untouched.
    """
    with atomic_directory(folder) as temporary:
        _WRITERS[tool](temporary, list(_groups(chunks)))
    return folder


Group = tuple[int, str, Mapping[str, Any], list[Path]]
"""(place of the prompt in its source, prompt, metadata, its images)."""


def _groups(chunks: Sequence[Chunk]) -> Iterator[Group]:
    """The prompts with their images, over all seeds, by their place in the source."""
    found: dict[int, Group] = {}
    for chunk in chunks:
        names = chunk.names()
        for i, (text, metadata) in enumerate(zip(chunk.prompts.texts, chunk.prompts.metadata, strict=True)):
            place = chunk.prompts.indices[i] if chunk.prompts.indices else chunk.prompts.offset + i
            own = names[i * chunk.images_per_prompt : (i + 1) * chunk.images_per_prompt]
            group = found.setdefault(place, (place, text, metadata, []))
            group[3].extend(chunk.folder / name for name in own)
    yield from (found[place] for place in sorted(found))


def _geneval(folder: Path, groups: list[Group]) -> None:
    for place, text, metadata, images in groups:
        samples = folder / f"{place:05d}" / "samples"
        samples.mkdir(parents=True)
        line = {**metadata, "prompt": text}
        (samples.parent / "metadata.jsonl").write_text(json.dumps(line), encoding="utf-8")
        for number, image in enumerate(images):
            shutil.copyfile(image, samples / f"{number:04d}.png")


def _hpsv2(folder: Path, groups: list[Group]) -> None:
    """The first image of each prompt, numbered within its style: the benchmark scores one image a prompt."""
    counts: dict[str, int] = {}
    for _, _, metadata, images in groups:
        style = _style(metadata)
        assert style is not None
        number = counts.get(style, 0)
        counts[style] = number + 1
        (folder / style).mkdir(exist_ok=True)
        with opened_picture(images[0]) as image:
            image.convert("RGB").save(folder / style / f"{number:05d}.jpg", quality=_JPEG_QUALITY, subsampling=0)


def _t2i_compbench(folder: Path, groups: list[Group]) -> None:
    """A folder for each category, as there are scripts for each; the number at a name's end counts its images: the
    scripts sort by it.
    """
    counts: dict[str, int] = {}
    for _, text, metadata, images in groups:
        category = str(metadata.get("category", ""))
        samples = folder / file_name(category) / "samples" if category else folder / "samples"
        samples.mkdir(parents=True, exist_ok=True)
        for image in images:
            number = counts.get(category, 0)
            counts[category] = number + 1
            shutil.copyfile(image, samples / f"{text}_{number:06d}.png")


_WRITERS: dict[str, Callable[[Path, list[Group]], None]] = {
    "geneval": _geneval,
    "hpsv2": _hpsv2,
    "t2i_compbench": _t2i_compbench,
}


def _style(metadata: Mapping[str, Any]) -> str | None:
    """The benchmark's name of a prompt's style; None where it has none."""
    name = str(metadata.get("category", "")).lower().replace("_", " ")
    name = _STYLE_NAMES.get(name, name)
    return name if name in HPSV2_STYLES else None
