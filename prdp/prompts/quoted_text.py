"""Prompts that quote a text which the picture is to show, for the reward `ocr`."""

from __future__ import annotations

import random

SPLITS = ("train", "heldout")
PLACES = (
    'A shop window with the words "{}" in white paint',
    'A street sign at a crossing that says "{}"',
    'A birthday cake with "{}" in icing',
    'A chalkboard in a café, on which "{}" is written',
    'A neon sign that reads "{}" above a door at night',
    'A T-shirt on a hanger with "{}" across the chest',
    'The cover of a paperback with the title "{}"',
    'A wooden signpost in a forest, with "{}" carved into it',
    'A poster on a brick wall announcing "{}"',
    'A coffee mug on a desk, printed with "{}"',
    'A handwritten note on a fridge that says "{}"',
    'A bus at its stop, with "{}" as its destination',
)
_FIRST = (
    "open fresh quiet golden little last grand silent lucky early broken happy frozen hidden northern second modern "
    "sweet brave rusty"
)
_SECOND = (
    "bread river garden market harbour letter window summer station mountain library island orchard bridge concert "
    "morning kitchen journey lantern theatre"
)
_THIRD = "today forever closed sale north club street number seven 1984 21"
FIRST, SECOND, THIRD = tuple(_FIRST.split()), tuple(_SECOND.split()), tuple(_THIRD.split())
MAX_SIZE = {"train": 10_000, "heldout": 2_500}


class QuotedTextPrompts:
    """`size` distinct prompts of one split, each quoting one to three words, in an order that depends on the arguments.

    The splits share places and words, and no quoted text.

    Args:
        split: 'train' or 'heldout'.
        size: 1 to MAX_SIZE of the split.
        seed: at least 0.

    Raises:
        ValueError: another split, size or seed.
    """

    def __init__(self, split: str = "train", size: int = 2_500, seed: int = 0) -> None:
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
        if not 1 <= size <= MAX_SIZE[split]:
            raise ValueError(f"size is {size}, expected 1 to {MAX_SIZE[split]:,} for split={split}")
        if seed < 0:
            raise ValueError(f"seed is {seed}, expected >= 0")
        self.fingerprint = f"quoted_text:{split}:{size}:{seed}"
        self._prompts = _drawn(split, size, seed)

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> tuple[str, dict[str, str]]:
        """A prompt and its metadata: text, what it quotes, and category ("1 word" to "3 words")."""
        prompt, text = self._prompts[index]
        words = text.count(" ") + 1
        return prompt, {"text": text, "category": "1 word" if words == 1 else f"{words} words"}


def texts(split: str) -> list[str]:
    """All texts that the prompts of a split may quote: every fifth is held out, of each number of words."""
    singles = [*FIRST, *SECOND]
    pairs = [f"{one} {two}" for one in FIRST for two in SECOND]
    triples = [f"{pair} {three}" for pair in pairs[::7] for three in THIRD]
    chosen = [
        text
        for group in (singles, pairs, triples)
        for n, text in enumerate(group)
        if (n % 5 == 0) != (split == "train")
    ]
    return [text.title() if number % 2 else text.upper() for number, text in enumerate(chosen)]


def _drawn(split: str, size: int, seed: int) -> list[tuple[str, str]]:
    rng = random.Random(f"quoted_text {split} {seed}")
    every = [(place.format(text), text) for place in PLACES for text in texts(split)]
    return rng.sample(every, size)
