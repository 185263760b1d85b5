"""The 45 animals of PRDP's small-scale runs, a list that goes back to DDPO."""

from __future__ import annotations

from prdp.prompts.cache import Cleaning

_NAMES = (
    "cat dog horse monkey rabbit zebra spider bird sheep deer cow goat lion tiger bear raccoon fox wolf lizard beetle "
    "ant butterfly fish shark whale dolphin squirrel mouse rat snake turtle frog chicken duck goose bee pig turkey fly "
    "llama camel bat gorilla hedgehog kangaroo"
)
ANIMALS = tuple(_NAMES.split())


class AnimalPrompts:
    """One prompt an animal.

    Args:
        template: '{}' stands for the animal. The paper's is 'A painting of a {}', to the letter: 'a ant' too.
    """

    def __init__(self, template: str = "A painting of a {}") -> None:
        self._template = Cleaning(template).template
        self.fingerprint = f"animals:{template}"

    def __len__(self) -> int:
        return len(ANIMALS)

    def __getitem__(self, index: int) -> tuple[str, dict[str, str]]:
        animal = ANIMALS[index]
        return self._template.replace("{}", animal), {"category": animal}
