"""Seeded damage to bodies and connections: bytes flipped, cut, doubled and spliced, and values of other kinds."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

JUNK: list[Any] = [
    *(None, True, False, 0, -1, 0.5, 1e308, 2**70, 10**400, "", "\u0000", "\ud800", "A" * 3000, "é", "NaN"),
    *([], {}, [[]], ["x"], {"a": 1}, [1] * 5, [None], [[[[[1]]]]], {"name": {}}, [2, 8, 9, 3]),
]
"""Values that a field does not expect."""


def deep(opening: str, closing: str, depth: int) -> str:
    """JSON nested so deep: '[' and ']', or '{"a":' and '}'."""
    return opening * depth + "1" + closing * depth


def flipped(draw: random.Random, whole: bytes, most: int = 8) -> bytes:
    """A copy with up to `most` places overwritten, cut out or filled in, and perhaps cut short."""
    body = bytearray(whole)
    for _ in range(draw.randint(1, most)):
        at = draw.randrange(len(body) + 1)
        body[at : at + draw.randint(0, 4)] = draw.randbytes(draw.randint(0, 4))
        if not body:
            break
    return bytes(body[: draw.randint(0, len(body))] if draw.random() < 0.3 else body)


def retyped(draw: random.Random, whole: bytes) -> bytes:
    """A copy of a JSON object in which one to three values, at any depth, are replaced, removed or repeated."""
    document = json.loads(whole)
    for _ in range(draw.randint(1, 3)):
        holders = list(_holders(document))
        if not holders:
            break
        holder = draw.choice(holders)
        key = draw.choice(list(holder)) if isinstance(holder, dict) else draw.randrange(len(holder))
        action = draw.random()
        if action < 0.15:
            del holder[key]
        elif action < 0.25 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[key] = copy.deepcopy(draw.choice(JUNK))
    return json.dumps(document).encode("utf-8", "surrogatepass")


def mutations(seed: int, wholes: list[bytes], count: int) -> Iterator[bytes]:
    """`count` damaged copies of the bodies in turn, and some bodies that are only deep."""
    draw = random.Random(seed)
    for depth in (10, 300, 900, 960, 990, 1000, 5000):
        yield deep("[", "]", depth).encode()
        key = draw.choice(list(json.loads(wholes[0])))
        document = {**json.loads(wholes[0]), key: 0}
        for opening, closing in (("[", "]"), ('{"a":', "}")):
            inner = deep(opening, closing, depth)
            yield json.dumps(document).replace(f'"{key}": 0', f'"{key}": {inner}').encode()
    for number in range(count):
        whole = wholes[number % len(wholes)]
        yield flipped(draw, whole) if draw.random() < 0.5 else retyped(draw, whole)


def _holders(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        if value:
            yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _holders(inner)
