"""The words that HPSv3's weights were trained to see around a prompt, read from where they are published."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from string import Formatter

from prdp.rewards.dependencies import MissingDependencyError, are_elsewhere
from prdp.rewards.weight_files import find_file

REWARD_TOKEN = "<|Reward|>"
IMAGE_TOKEN = "<|image_pad|>"
PACKAGE = "hpsv3"
FILE = Path("dataset", "data_collator_qwen.py")
_BEFORE, _AFTER = "INSTRUCTION", "prompt_with_special_token"
"""Names of that file. The first is a format string, the second follows it as it is."""
_PLACE = "text_prompt"


def find_instruction(path: str | None) -> str | None:
    """The instruction: a format string with the place {text_prompt} and, once, the token whose state is scored.

    Args:
        path: a text file of it; None for that of the authors' package, of which one file is parsed and nothing run.

    Returns:
        None where the package is to be found in another environment, see `dependencies.dependencies_elsewhere`.

    Raises:
        ValueError: no package and no file, or one without the place or the token.
    """
    if path is not None:
        file = find_file("instruction", path)
        assert file is not None
        return _checked(f"instruction={path}", _text(f"instruction={path}", file))
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        if are_elsewhere():
            return None
        raise MissingDependencyError(
            "reward 'hpsv3' reads the instruction that its weights were trained with from its authors' package, which "
            f"is not installed: pip install --no-deps {PACKAGE}==1.0.0 (no code of it is run, so what it requires is "
            "not needed); or reward.instruction=<text file>"
        )
    file = Path(next(iter(found.submodule_search_locations))) / FILE
    key = f"instruction=null ({file})"
    texts = _constants(key, file)
    return _checked(key, texts[_BEFORE] + texts[_AFTER].replace("{", "{{").replace("}", "}}"))


def check_words(prompt: str) -> None:
    """Raise ValueError for a prompt with a token in it that says where the image or the score is."""
    for token in (REWARD_TOKEN, IMAGE_TOKEN):
        if token in prompt:
            raise ValueError(f"prompt {prompt!r} has {token} in it, which hpsv3 must find once, in its own place")


def _constants(key: str, file: Path) -> dict[str, str]:
    try:
        statements = ast.parse(_text(key, file)).body
    except SyntaxError as error:
        raise ValueError(f"{key}: is no Python: {error}") from None
    texts: dict[str, str] = {}
    for one in statements:
        if isinstance(one, ast.Assign) and isinstance(one.value, ast.Constant) and isinstance(one.value.value, str):
            texts |= {target.id: one.value.value for target in one.targets if isinstance(target, ast.Name)}
    if missing := [name for name in (_BEFORE, _AFTER) if name not in texts]:
        raise ValueError(f"{key}: has no text {missing[0]}, as {PACKAGE} 1.0.0 has; set reward.instruction=<text file>")
    return texts


def _checked(key: str, text: str) -> str:
    try:
        places = [place for _, place, _, _ in Formatter().parse(text) if place is not None]
    except ValueError as error:
        raise ValueError(f"{key}: is no format string, {error}; braces of the text are doubled") from None
    if set(places) != {_PLACE}:
        has = ", ".join(f"{{{place}}}" for place in places) or "none"
        raise ValueError(f"{key}: has the places {has}, must have {{{_PLACE}}} alone; other braces are doubled")
    if text.count(REWARD_TOKEN) != 1 or IMAGE_TOKEN in text:
        raise ValueError(
            f"{key}: has {REWARD_TOKEN} {text.count(REWARD_TOKEN)} times and {IMAGE_TOKEN} {text.count(IMAGE_TOKEN)} "
            "times, must have the first once and the second never"
        )
    return text


def _text(key: str, file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{key}: cannot be read: {error}") from None
