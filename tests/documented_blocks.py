"""The blocks of code in Markdown pages: language, place, the file that one shows, and why one is not run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("prdp/**/README.md")]
)
_BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
_SHOWS = re.compile(r"`([\w./]+\.(?:py|yaml|txt))`:\s*\Z")
_MARK = re.compile(r"<!-- (not run|run by) ?: ?(.*?) -->\s*\Z")
_FIRST_LINE = re.compile(r"# (\S+\.(?:yaml|py))\n")
SHELL = ("", "sh", "bash")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: of the fence, counted from 1.
        file: the file that the text before the block, or its first line, says it is; else "".
        not_run: the reason in `<!-- not run: ... -->` before the block; else "".
        run_by: the tests in `<!-- run by: ... -->`; else "".
    """

    page: Path
    line: int
    language: str
    text: str
    file: str = ""
    not_run: str = ""
    run_by: str = ""

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_shell(self) -> bool:
        return self.language in SHELL

    def commands(self) -> Iterator[str]:
        """Lines of a shell, continued ones joined, without comments and prompts."""
        for line in self.text.replace("\\\n", " ").splitlines():
            line = re.sub(r"\s+#.*$", "", line.removeprefix("$ ")).strip()
            if line and not line.startswith("#"):
                yield line


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, those in lists too, without their indentation."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        before, body = text[: match.start()], match["body"]
        if match["indent"]:
            body = re.sub(f"^{match['indent']}", "", body, flags=re.MULTILINE)
        mark, shows, first = _MARK.search(before), _SHOWS.search(before), _FIRST_LINE.match(body)
        found.append(
            Block(
                page,
                1 + before.count("\n"),
                match["language"],
                body,
                file=shows[1] if shows else (first[1] if first else ""),
                not_run=mark[2] if mark and mark[1] == "not run" else "",
                run_by=mark[2] if mark and mark[1] == "run by" else "",
            )
        )
    return found


def words_of(line: str) -> list[str]:
    """Words of a line; a placeholder such as <the same words> is one."""
    return shlex.split(re.sub(r"<[^>]*>", lambda match: shlex.quote(match[0]), line), comments=True)
