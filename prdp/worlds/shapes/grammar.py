"""The prompt language of the shapes world: `caption` writes a scene, `parse` is its exact inverse.

object     := "a" size fill color shape
prompt     := object [relation object ["and" object]] "on a" background "background"
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from prdp.worlds.shapes.scene import BACKGROUNDS, COLORS, FILLS, RELATIONS, SHAPES, SIZES, Obj, Scene

# Every word that a caption can contain, without repeats, in a fixed order.
VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys(
        chain(
            ("a", "and", "on", "background"),
            SIZES,
            FILLS,
            COLORS,
            SHAPES,
            chain.from_iterable(name.split() for name in RELATIONS),
            BACKGROUNDS,
        )
    )
)


def _phrase(o: Obj) -> str:
    return f"a {o.size} {o.fill} {o.color} {o.shape}"


def caption(scene: Scene) -> str:
    """The canonical prompt of a scene: lower case, single spaces, at most 22 words."""
    text = _phrase(scene.objects[0])
    if scene.relation is not None:
        text += f" {scene.relation} {_phrase(scene.objects[1])}"
    for o in scene.objects[2:]:
        text += f" and {_phrase(o)}"
    return f"{text} on a {scene.background} background"


class _Words:
    """A cursor over the words of one prompt."""

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt
        self.words = prompt.lower().split()
        self.at = 0

    def peek(self) -> str | None:
        return self.words[self.at] if self.at < len(self.words) else None

    def fail(self, expected: Iterable[str]) -> ValueError:
        word = self.peek()
        found = "the prompt ends" if word is None else f"word {word!r} is not understood"
        return ValueError(
            f"{found} at position {self.at + 1} of {self.prompt!r}, expected one of: {', '.join(expected)}"
        )

    def take(self, expected: Iterable[str]) -> str:
        expected = tuple(expected)
        word = self.peek()
        if word is None or word not in expected:
            raise self.fail(expected)
        self.at += 1
        return word


def _object(words: _Words) -> Obj:
    words.take(("a",))
    size, fill = words.take(SIZES), words.take(FILLS)
    color, shape = words.take(COLORS), words.take(SHAPES)
    return Obj(color, shape, size, fill)


def _relation(words: _Words) -> str:
    first = words.take(name.split()[0] for name in RELATIONS)
    name = next(name for name in RELATIONS if name.split()[0] == first)
    for word in name.split()[1:]:
        words.take((word,))
    return name


def parse(prompt: str) -> Scene:
    """The scene of a prompt; letter case and the amount of white space don't matter.

    Raises ValueError that names the word that wasn't understood and its position (counted in words from 1), or the
    rule that the scene breaks.
    """
    words = _Words(prompt)
    objects = [_object(words)]
    relation: str | None = None
    if words.peek() != "on":
        if words.peek() not in {name.split()[0] for name in RELATIONS}:
            raise words.fail(("on", *RELATIONS))
        relation = _relation(words)
        objects.append(_object(words))
        if words.peek() == "and":
            words.take(("and",))
            objects.append(_object(words))
        elif words.peek() != "on":
            raise words.fail(("on", "and"))
    words.take(("on",))
    words.take(("a",))
    background = words.take(BACKGROUNDS)
    words.take(("background",))
    if words.peek() is not None:
        raise words.fail(("the end of the prompt",))
    return Scene(tuple(objects), relation, background)


def count_prompts() -> int:
    """The number of distinct canonical prompts."""
    pairs, variants = len(COLORS) * len(SHAPES), len(SIZES) * len(FILLS)
    one = pairs * variants
    two = one * (pairs - 1) * variants * len(RELATIONS)
    three = two * (pairs - 2) * variants
    return (one + two + three) * len(BACKGROUNDS)
