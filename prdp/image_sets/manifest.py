"""What a set of images is: `set.json` and `prompts.jsonl`, written when all images are there.

set.json        the model and its digest, how it drew, the space of its latents, the rewards that scored; a digest
prompts.jsonl   a line a prompt: text, metadata, where its images lie, and the digest of each image and its latents
samples/        the images, latents and scores, chunk by chunk, as prdp/evaluation/store.py lays them out
The files are equal for equal settings, whoever made them and however often they were interrupted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prdp.support.errors import StartError
from prdp.support.json_lines import load_json, read_json_lines
from prdp.support.storage import write_atomically
from prdp.tracking.strict_json import dump, strict_json

FORMAT = 1
FILE = "set.json"
PROMPTS = "prompts.jsonl"


@dataclass(frozen=True)
class Manifest:
    """What stands in `set.json`.

    Attributes:
        model: what drew: {"name", "kind", "source", "family", "digest", "epoch"}.
        sampler: settings of the sampler that decide the images; None for pictures that nobody sampled.
        precision: {"dtype", "autocast"} of the network.
        seed: of the noise.
        images_per_prompt: K.
        picture_size: (H, W) in pixels.
        latents: {"shape": [C, h, w], "dtype", "vae": digest of what decodes them}; with "chains" where the latents of
            every step are kept too.
        rewards: name -> {"identity": name, version and terms, "section": the reward's configuration}.
        prompts: how many.
        prompts_digest: of prompts.jsonl.
    """

    model: Mapping[str, Any]
    sampler: Mapping[str, Any] | None
    precision: Mapping[str, Any]
    seed: int
    images_per_prompt: int
    picture_size: tuple[int, int]
    latents: Mapping[str, Any]
    rewards: Mapping[str, Mapping[str, Any]]
    prompts: int
    prompts_digest: str

    @property
    def digest(self) -> str:
        """Changes with the images, latents, prompts and metadata; not with the rewards that scored them."""
        facts = {name: value for name, value in dataclasses.asdict(self).items() if name != "rewards"}
        return _digest(json.dumps(strict_json(facts), sort_keys=True).encode())

    @property
    def guidance_scale(self) -> float | None:
        """That the images were drawn with; None for pictures that nobody sampled."""
        return None if self.sampler is None else float(self.sampler["guidance_scale"])


@dataclass(frozen=True)
class Entry:
    """A line of `prompts.jsonl`.

    Attributes:
        prompt, metadata: of K images.
        prompt_set: the name of the set of prompts that it comes from.
        chunk: folder of the images, relative to the set's.
        row: which prompt of the chunk it is.
        files: names of the images in that folder.
        images: digests of their pixels.
        latents: digests of the latents.
    """

    prompt: str
    metadata: Mapping[str, Any]
    prompt_set: str
    chunk: str
    row: int
    files: tuple[str, ...]
    images: tuple[str, ...]
    latents: tuple[str, ...]

    @property
    def skill(self) -> str:
        """The skill that the prompt is for: of its metadata, else the name of its set of prompts."""
        return str(self.metadata.get("skill", self.prompt_set))


def write(folder: Path, manifest: Manifest, entries: Sequence[Entry]) -> Manifest:
    """Write both files, the manifest last; the manifest with the digest of the entries."""
    content = "".join(dump(dataclasses.asdict(entry)) for entry in entries).encode()
    manifest = dataclasses.replace(manifest, prompts=len(entries), prompts_digest=_digest(content))
    write_atomically(folder / PROMPTS, content)
    document = {"format": FORMAT, "digest": manifest.digest, **dataclasses.asdict(manifest)}
    write_atomically(folder / FILE, (json.dumps(strict_json(document), indent=1, ensure_ascii=False) + "\n").encode())
    return manifest


def read(folder: Path) -> tuple[Manifest, list[Entry]]:
    """Read both files of a set.

    Raises:
        StartError: there is no set, it is not finished, or a file is damaged or was changed; names the file.
    """
    manifest = read_manifest(folder)
    file = folder / PROMPTS
    try:
        content = file.read_bytes()
    except OSError as error:
        raise StartError(f"{file}: {error.strerror}") from error
    found = _digest(content)
    if found != manifest.prompts_digest:
        raise StartError(
            f"{file} was changed: its digest is {found}, and {FILE} beside it says {manifest.prompts_digest}"
        )
    try:
        return manifest, read_json_lines(file, _entry)
    except ValueError as error:
        raise StartError(str(error)) from error


def read_manifest(folder: Path) -> Manifest:
    """Read `set.json` alone. Raises as `read`."""
    file = folder / FILE
    if not file.is_file():
        if (folder / "samples").is_dir():
            raise StartError(
                f"{folder} is not a whole set of images: there is no {FILE}, which prdp generate writes at its end; "
                f"the same command again goes on: output_dir={folder}"
            )
        raise StartError(f"{folder} is no set of images, as prdp generate makes them: there is no {FILE} in it")
    try:
        document = load_json(file.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise StartError(f"{file}: format={document['format']}: this version reads format {FORMAT}")
        names = [field.name for field in dataclasses.fields(Manifest)]
        height, width = (int(side) for side in document["picture_size"])
        manifest = Manifest(**{**{name: document[name] for name in names}, "picture_size": (height, width)})
        _check_form(manifest)
        digest = str(document["digest"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise StartError(f"{file} is damaged: {error}") from error
    if manifest.digest != digest:
        raise StartError(f"{file} was changed: its digest is {manifest.digest}, and it says {digest}")
    return manifest


def _check_form(manifest: Manifest) -> None:
    """Raise ValueError for what is not of the form that `write` gives."""
    sound = {
        "model": isinstance(manifest.model, dict),
        "sampler": manifest.sampler is None
        or (isinstance(manifest.sampler, dict) and isinstance(manifest.sampler.get("guidance_scale"), int | float)),
        "images_per_prompt": type(manifest.images_per_prompt) is int and manifest.images_per_prompt > 0,
        "latents": isinstance(manifest.latents, dict) and isinstance(manifest.latents.get("shape"), list),
        "rewards": isinstance(manifest.rewards, dict)
        and all(
            isinstance(one, dict) and isinstance(one.get("identity"), dict) and isinstance(one.get("section"), dict)
            for one in manifest.rewards.values()
        ),
    }
    for name, is_sound in sound.items():
        if not is_sound:
            raise ValueError(f"{name} is {getattr(manifest, name)!r:.80}, which no set has")


def _entry(content: Any) -> Entry:
    lists = {name: tuple(content[name]) for name in ("files", "images", "latents")}
    entry = Entry(**{**content, **lists})
    if not isinstance(entry.prompt, str) or not isinstance(entry.metadata, dict) or type(entry.row) is not int:
        raise ValueError("expected a prompt, its metadata and a row")
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in (entry.chunk, *entry.files)):
        raise ValueError(f"chunk={entry.chunk}: must lie in the folder of the set")
    return entry


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=12).hexdigest()
