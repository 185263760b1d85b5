"""Goes through a guide as its reader does: makes the files that it shows and types its lines, at a smaller scale."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from documented_blocks import ROOT, Block, blocks, words_of

from prdp.cli import main

TRAIN = (
    *("epochs=1", "prompts_per_epoch=2", "images_per_prompt=2", "sampler.steps=2", "learner.lora_rank=2"),
    *("evaluation.prompts=1", "evaluation.final_prompts=2", "evaluation.images_per_prompt=1"),
    *("evaluation.grid_prompts=1", "tracking=silent"),
)
SMALLER: Mapping[str, Sequence[str]] = {
    "train": TRAIN,
    "validate": TRAIN,
    "evaluate": ("prompts_per_set=2", "images_per_prompt=2", "grid_prompts=1"),
    "generate": ("prompts_per_set=4",),
    "distill": ("updates=2", "batch_size=2"),
    "calibrate": ("prompts_per_set=4",),
    "gate": ("gate.steps=2", "gate.batch_size=2"),
    "collm pretrain": ("train=8", "validation=2", "test=2", "base_steps=2", "assistant_steps=2"),
    "collm train": ("training.steps=2", "init.steps=2", "training.batch_size=4"),
    "collm calibrate": ("rates=[0.3]", "writing.max_new_tokens=8"),
    "collm decode": ("writing.max_new_tokens=8",),
}
"""Command -> words in place of those that the line, or a recipe, has for the same key."""
CHECKED = "prdp validate"
Changes = Sequence[tuple[str, Sequence[str]]]
"""(pattern, words): lines that the pattern is found in get these words too; of equal keys the last one wins. The word
CHECKED has a `train` validated instead, where the page trains on its like in another line."""


def walk(page: Path, changes: Changes = (), texts: Mapping[str, str] | None = None) -> int:
    """Do in the current folder what a page says; how many lines and programs were run.

    Args:
        texts: what the page has -> what is put in its place, such as the path of a model.

    Raises:
        AssertionError: naming page and line of what did not end with 0.
    """
    done = 0
    for block in blocks(page):
        if block.not_run or block.run_by:
            continue
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.is_shell:
            for line in block.commands():
                _run(block, _replaced(line, texts or {}), changes)
                done += 1
        elif block.language == "python":
            exec(compile(_replaced(block.text, texts or {}), block.where, "exec"), {"__name__": "__main__"})
            done += 1
    return done


def _replaced(text: str, texts: Mapping[str, str]) -> str:
    for old, new in texts.items():
        text = text.replace(old, new)
    return text


def smaller(words: Sequence[str], line: str, changes: Changes) -> list[str]:
    """The words of a line behind `prdp`, with those of its command and of `changes` in the place of equal keys."""
    name = " ".join(words[: 2 if words[0] in ("collm", "prompts") else 1])
    extra = [word for pattern, more in changes if re.search(pattern, line) for word in more]
    if CHECKED in extra:
        assert words[0] == "train", f"{line}: is no training"
        words = ["validate", *words[1:]]
    given = [*SMALLER.get(name, ()), *(word for word in extra if word != CHECKED)]
    last = {word.lstrip("+~").partition("=")[0]: word for word in given}
    kept = [word for word in words if word.lstrip("+").partition("=")[0] not in last]
    return [*kept, *last.values()]


def _run(block: Block, line: str, changes: Changes) -> None:
    words = words_of(line)
    where = f"{block.where}: {line}"
    if words[:1] == ["prdp"]:
        given = smaller(words[1:], line, changes)
        code = main(given)
        assert code == 0, f"{where}\nas: prdp {' '.join(given)}\nended with {code}"
    elif words[:1] == ["python"] and len(words) == 2:
        assert Path(words[1]).is_file(), where
        runpy.run_path(words[1])
    elif words[:2] == ["pip", "install"]:
        _check_extras(where, words[2:])
    elif words[:1] == ["printf"]:
        subprocess.run(["sh", "-c", line], check=True)
    else:
        raise AssertionError(f"{where}: this is not run; say why in <!-- not run: ... --> before the block")


def _check_extras(where: str, words: Sequence[str]) -> None:
    """`pip install 'prdp[...]'` names extras that there are."""
    setup = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    for word in words:
        [extra] = re.findall(r"^prdp\[(\w+)\]$", word) or [None]
        assert extra is not None, f"{where}: pip installs something else than prdp"
        assert re.search(rf"^{extra} =$", setup, re.MULTILINE), f"{where}: no such extra"


def forget_modules(folder: Path) -> None:
    """Modules that were imported from the folder are read anew when they are asked for again."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]
