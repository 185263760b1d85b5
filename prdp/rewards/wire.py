"""What a remote reward and its server say to each other: JSON, images in base64; nothing that runs on being read.

A request, `POST /score`:

    {"format": 1, "shape": [B, H, W, 3], "encoding": "png" or "raw", "images": [B texts], "prompts": [B texts],
     "metadata": [B objects]}

Each image is base64 of a PNG file in RGB, or of its H * W * 3 bytes, row by row, RGB. The answer:

    {"format": 1, "name": text, "version": text, "rewards": [B numbers], "sub_scores": {name: [B numbers or null]}}

null stands for a sub-score that does not apply. What goes wrong is answered as {"error": text}.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prdp.rewards.names import MOST
from prdp.rewards.wire_values import WireError, name_of, numbers_of, short, told
from prdp.types import Float64, UInt8

FORMAT = 1
ENCODINGS = ("png", "raw")
MIB = 2**20
VALUES = 1_000_000
"""Lists, objects and their entries in one body."""
"""Bytes of an answer that tells of an error."""


@dataclass(frozen=True)
class Limits:
    """What a server takes in one request.

    Attributes:
        request_bytes: length of the body.
        images: number of images.
        decoded_bytes: size of all images once decoded, so that a small PNG cannot become a huge array.
        values: lists, objects and their entries in the body, so that a body of brackets cannot become 20 times its size
            in memory.
    """

    request_bytes: int = 64 * MIB
    images: int = 256
    decoded_bytes: int = 512 * MIB
    values: int = VALUES


def encode_request(
    images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]], encoding: str = "png"
) -> bytes:
    """The body that asks for the scores of uint8 images [B, H, W, 3].

    Raises:
        ValueError: metadata that JSON cannot hold, by prompt.
    """
    one = _png if encoding == "png" else np.ndarray.tobytes
    document = {
        "format": FORMAT,
        "shape": list(images.shape),
        "encoding": encoding,
        "images": [base64.b64encode(one(image)).decode("ascii") for image in images],
        "prompts": list(prompts),
        "metadata": [plain_metadata(*pair) for pair in zip(prompts, metadata, strict=True)],
    }
    return json.dumps(document).encode()


def plain_metadata(prompt: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt's metadata as JSON gives them back.

    Raises:
        ValueError: what JSON cannot hold, by prompt.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(metadata), default=_plain, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata of prompt {prompt!r} cannot be sent as JSON: {error}") from None
    return plain


def decode_request(body: bytes, limits: Limits) -> tuple[UInt8, list[str], list[dict[str, Any]]]:
    """Images uint8 [B, H, W, 3], prompts and metadata of a request.

    Raises:
        WireError: the body does not follow the format, or goes beyond the limits.
    """
    document = _document(body, limits.values)
    count, height, width = _shape(document.get("shape"), limits)
    encoding = document.get("encoding")
    if encoding not in ENCODINGS:
        raise WireError(f"encoding is {short(encoding)}, expected one of {', '.join(ENCODINGS)}")
    images = _list(document, "images", count, str)
    prompts = _list(document, "prompts", count, str)
    metadata = _list(document, "metadata", count, dict)
    result = np.empty((count, height, width, 3), np.uint8)
    for index, text in enumerate(images):
        try:
            content = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise WireError(f"images[{index}] is not base64: {error}") from None
        result[index] = _image(content, encoding, height, width, f"images[{index}]")
    return result, prompts, metadata


def encode_answer(identity: Mapping[str, Any], rewards: Float64, sub_scores: Mapping[str, Float64]) -> bytes:
    """The body that answers with rewards float64 [B], finite, and sub-scores float64 [B], NaN where none applies."""
    document = {
        "format": FORMAT,
        "name": identity["name"],
        "version": identity["version"],
        "rewards": rewards.tolist(),
        "sub_scores": {
            name: [value if math.isfinite(value) else None for value in values.tolist()]
            for name, values in sub_scores.items()
        },
    }
    return json.dumps(document, allow_nan=False).encode()


def decode_answer(body: bytes) -> tuple[str, str, list[float], dict[str, list[float]]]:
    """Name and version of the reward, its rewards and sub-scores, null as NaN; how many is left to the caller's checks.

    Raises:
        WireError: the body does not follow the format.
    """
    document = _document(body)
    name, version = name_of(document.get("name"), "name"), name_of(document.get("version"), "version")
    rewards = numbers_of(document.get("rewards"), "rewards")
    sub_scores = document.get("sub_scores")
    if not isinstance(sub_scores, dict):
        raise WireError(f"sub_scores is {short(sub_scores)}, expected an object of lists of numbers")
    if len(sub_scores) > MOST:
        raise WireError(f"sub_scores has {len(sub_scores)} entries, at most {MOST} are taken")
    parts = {
        name_of(part, "a sub-score's name"): numbers_of(values, f"sub_scores[{part!r}]", null=True)
        for part, values in sub_scores.items()
    }
    return name, version, rewards, parts


def decode_identity(body: bytes) -> dict[str, Any]:
    """What a server says about itself: {"name", "version", "limits": {name: at least 1}}, and perhaps "terms".

    Raises:
        WireError: the body does not follow the format.
    """
    document = _document(body)
    limits = document.get("limits")
    known = ("request_bytes", "images")
    if not isinstance(limits, dict) or not all(
        type(limits.get(key, 1)) is int and limits.get(key, 1) >= 1 for key in known
    ):
        raise WireError(f"limits is {short(limits)}, expected an object of whole numbers from 1")
    identity: dict[str, Any] = {"name": name_of(document.get("name"), "name")}
    identity["version"] = name_of(document.get("version"), "version")
    identity["limits"] = {key: limits[key] for key in known if key in limits}
    if isinstance(document.get("terms"), dict):
        if len(document["terms"]) > MOST:
            raise WireError(f"terms has {len(document['terms'])} entries, at most {MOST} are taken")
        identity["terms"] = told(document["terms"], "terms", depth=5)
    return identity


def _document(body: bytes, limit: int = VALUES) -> dict[str, Any]:
    """The object of this format in a body."""
    document = json_object(body, limit)
    if document.get("format") != FORMAT or isinstance(document.get("format"), bool):
        raise WireError(f"format is {short(document.get('format'))}, expected {FORMAT}")
    return document


def json_object(body: bytes, limit: int = VALUES) -> dict[str, Any]:
    """The JSON object in a body, unless it would become many times its size in memory.

    Raises:
        WireError: it is none, or holds more than `limit` values.
    """
    values = sum(body.count(mark) for mark in (b"[", b"{", b","))
    if values > limit:
        raise WireError(f"the body holds {values} lists, objects and commas, at most {limit} are taken")

    def refuse(constant: str) -> Any:
        raise WireError(f"the body holds {constant}, which JSON does not know")

    try:
        document = json.loads(body, parse_constant=refuse)
    except WireError:
        raise
    except (ValueError, RecursionError) as error:
        raise WireError(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise WireError(f"the body is a JSON {type(document).__name__}, expected an object")
    return document


def _shape(shape: Any, limits: Limits) -> tuple[int, int, int]:
    numbers = isinstance(shape, list) and len(shape) == 4 and all(type(side) is int and side > 0 for side in shape)
    if not numbers or shape[3] != 3:
        raise WireError(f"shape is {short(shape)}, expected [B, H, W, 3]")
    if shape[0] > limits.images:
        raise WireError(f"shape asks for {shape[0]} images, at most {limits.images} are taken at once")
    if math.prod(shape) > limits.decoded_bytes:
        raise WireError(f"shape {shape} makes {math.prod(shape)} bytes, at most {limits.decoded_bytes} are taken")
    return shape[0], shape[1], shape[2]


def _list(document: Mapping[str, Any], key: str, count: int, kind: type) -> list[Any]:
    values = document.get(key)
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        words = "texts" if kind is str else "objects"
        raise WireError(f"{key} is {short(values)}, expected a list of {words}")
    if len(values) != count:
        raise WireError(f"{key} has {len(values)} entries, expected {count} as in shape")
    return values


def _image(content: bytes, encoding: str, height: int, width: int, where: str) -> UInt8:
    if encoding == "raw":
        if len(content) != height * width * 3:
            raise WireError(f"{where} has {len(content)} bytes, expected {height} * {width} * 3")
        return np.frombuffer(content, np.uint8).reshape(height, width, 3)
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            if picture.size != (width, height) or picture.mode != "RGB":
                raise WireError(
                    f"{where} is a {picture.mode} image of {picture.size[0]} x {picture.size[1]}, "
                    f"expected RGB of {width} x {height}"
                )
            return np.asarray(picture)
    except WireError:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow raises errors of many kinds on damaged files
        raise WireError(f"{where} is not a PNG file: {type(error).__name__}: {error}") from None


def _png(image: UInt8) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    raise TypeError(f"a {type(value).__name__}")
