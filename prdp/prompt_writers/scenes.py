"""Skills of the shapes world: which scenes exercise one, drawn and recognised by the world's own grammar."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prdp.support.suggest import did_you_mean
from prdp.worlds.shapes.grammar import parse
from prdp.worlds.shapes.scene import BACKGROUNDS, COLORS, FILLS, MAX_OBJECTS, RELATIONS, SHAPES, SIZES, Obj, Scene
from prdp.worlds.shapes.split import SPLITS, heldout_reasons, is_held_out

OF_OBJECTS: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS), "shape": SHAPES, "size": SIZES, "fill": FILLS,
}  # fmt: skip
OF_SCENES: dict[str, tuple[str, ...]] = {"relation": tuple(RELATIONS), "background": tuple(BACKGROUNDS)}
_TRIES = 1000


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Scenes that exercise a skill.

    Attributes:
        objects: numbers of objects, each as likely.
        differ: attributes in which no two objects of a scene are alike.
        only: attribute -> the values that it may have; others are free.
        split: train: scenes without the combinations that the world holds out; heldout: scenes with some.

    Raises:
        ValueError: by key: what the world does not have, or more objects that differ than there are values.
    """

    objects: Sequence[int] = (1, 2, 3)
    differ: Sequence[str] = ()
    only: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    split: str = "train"

    def __post_init__(self) -> None:
        if problems := [*self._problems()]:
            raise ValueError("\n".join(problems))

    def draw(self, rng: np.random.Generator) -> Scene:
        """A scene.

        Raises:
            ValueError: none was found among many, so that there are hardly any.
        """
        # Once for all tries, or numbers of which few scenes pass would be rare.
        count = int(rng.choice(self.objects))
        for _ in range(_TRIES):
            columns = {name: self._values(rng, name, count) for name in OF_OBJECTS}
            if len(set(zip(columns["color"], columns["shape"], strict=True))) < count:
                continue
            objects = tuple(Obj(**{name: values[i] for name, values in columns.items()}) for i in range(count))
            relation, background = (str(rng.choice(self._allowed(name))) for name in OF_SCENES)
            scene = Scene(objects, relation if count > 1 else None, background)
            if is_held_out(scene) == (self.split == "heldout"):
                return scene
        raise ValueError(f"scenes: none of {_TRIES} that were drawn is of split={self.split} with different objects")

    def problem(self, text: str, any_split: bool = False) -> str | None:
        """Why a text is no prompt of the skill; None where it is.

        Args:
            any_split: whether its split does not matter.
        """
        try:
            scene = parse(text)
        except ValueError as error:
            return str(error)
        if len(scene.objects) not in self.objects:
            return f"{len(scene.objects)} objects, not {' or '.join(map(str, self.objects))}"
        for name in OF_OBJECTS:
            values = [getattr(one, name) for one in scene.objects]
            if name in self.differ and len(set(values)) < len(values):
                return f"two objects of one {name}"
            if stray := set(values) - set(self._allowed(name)):
                return f"{name} {', '.join(sorted(stray))}"
        for name in OF_SCENES:
            value = getattr(scene, name)
            if value is not None and value not in self._allowed(name):
                return f"{name} {value}"
        if not any_split and is_held_out(scene) != (self.split == "heldout"):
            return f"held out: {', '.join(heldout_reasons(scene))}" if self.split == "train" else "not held out"
        return None

    def metadata(self, text: str) -> dict[str, Any]:
        """What a prompt of the grammar says: its canonical caption's scene, number of objects and split."""
        scene = parse(text)
        return {"objects": len(scene.objects), "split": self.split, "scene": dataclasses.asdict(scene)}

    def _values(self, rng: np.random.Generator, name: str, count: int) -> list[str]:
        return [str(one) for one in rng.choice(self._allowed(name), count, replace=name not in self.differ)]

    def _allowed(self, name: str) -> Sequence[str]:
        return self.only.get(name, (OF_OBJECTS | OF_SCENES)[name])

    def _problems(self) -> list[str]:
        found = []
        known = OF_OBJECTS | OF_SCENES
        if not self.objects or any(type(one) is not int or not 1 <= one <= MAX_OBJECTS for one in self.objects):
            found.append(f"objects={list(self.objects)}: must be whole numbers from 1 to {MAX_OBJECTS}")
        for name in self.differ:
            if name not in OF_OBJECTS:
                found.append(f"differ={name}: must be of {', '.join(OF_OBJECTS)}{did_you_mean(name, OF_OBJECTS)}")
        for name, values in self.only.items():
            if name not in known:
                found.append(f"only.{name}: must be of {', '.join(known)}{did_you_mean(name, known)}")
            elif not values or not set(values) <= set(known[name]):
                found.append(f"only.{name}={list(values)}: must be of {', '.join(known[name])}")
        if self.split not in SPLITS:
            found.append(f"split={self.split}: must be {' or '.join(SPLITS)}")
        for name in () if found else self.differ:
            if len(set(self._allowed(name))) < max(self.objects):
                found.append(f"differ={name}: {max(self.objects)} objects need as many of its values")
        return found
