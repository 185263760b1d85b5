"""Hooks of MkDocs: pages that are kept elsewhere or made of the code; links that work in the repository and the site.

README, CONTRIBUTING and CHANGELOG are read from the root. The pages below reference/ are made of the schema of the
configuration, of the help of the commands, and of docstrings.
"""

from __future__ import annotations

import contextlib
import io
import posixpath
import re
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
MOVED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the root -> their place in the site."""
PYTHON = ("prdp.api", "prdp.config", "prdp.types", "prdp.rewards.base", "prdp.prompts.stream", "prdp.diffusion.policy")
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    made = {place: (ROOT / name).read_text(encoding="utf-8") for name, place in MOVED.items()}
    made |= {
        "reference/commands.md": commands_page(),
        "reference/configuration.md": configuration_page(),
        "reference/options.md": options_page(),
        "reference/python.md": python_page(),
    }
    for place, content in made.items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the repository into those of the site; what the site does not have is named without a link."""
    place = page.file.src_uri
    here = posixpath.dirname(next((name for name, moved in MOVED.items() if moved == place), f"docs/{place}"))

    def turned(match: re.Match[str]) -> str:
        picture, text, link = match.groups()
        if re.match(r"[a-z]+:|#", link):
            return match.group(0)
        path, hash_sign, anchor = link.partition("#")
        target = posixpath.normpath(posixpath.join(here, path))
        if target in MOVED:
            target = MOVED[target]
        elif target.startswith("docs/"):
            target = target.removeprefix("docs/")
        elif (ROOT / target).exists():
            return text
        if posixpath.splitext(target)[1] == "" and f"{target}/README.md" in files.src_uris:
            target = f"{target}/README.md"
        return f"{picture}[{text}]({posixpath.relpath(target, posixpath.dirname(place) or '.')}{hash_sign}{anchor})"

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(turned, part) for part in parts)


def commands_page() -> str:
    """The help of every command."""
    from prdp.cli import COMMANDS, help_text

    lines = ["# Commands", "", "```", help_text().strip(), "```"]
    for name, (_, summary) in COMMANDS.items():
        lines += ["", f"## prdp {name}", "", f"{summary[0].upper()}{summary[1:]}.", "", "```", help_of(name), "```"]
    return "\n".join(lines)


def help_of(command: str) -> str:
    """What `prdp COMMAND --help` prints."""
    from prdp.cli import main
    from prdp.commands import train

    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        main([command, "--help"])
    told = "(experiments, groups and sections: on the pages of keys and options)"
    return shown.getvalue().replace(train.options_text(), told).strip()


def configuration_page() -> str:
    """Every key of a run with type, default and meaning."""
    from prdp.config import TrainConfig
    from prdp.configuration.key_help import documented

    lines = [
        "# Keys of the configuration",
        "",
        "Of `prdp train` and `prdp validate`. `prdp train --help learner` tells those of one section; other commands "
        "tell theirs likewise. Groups (`model`, `sampler`, `reward`, `objective`, ...) set many keys at once.",
    ]
    rows: list[str] = []
    keys = list(documented(TrainConfig))
    top = [key for key in keys if "." not in key.name and not key.is_section]
    sections = [key for key in keys if key.is_section]
    tables = [("Keys of no section", "", top)]
    for section in sections:
        inside = [key for key in keys if key.name.rpartition(".")[0] == section.name and not key.is_section]
        tables.append((section.name, section.meaning, inside))
    for title, meaning, members in tables:
        rows += ["", f"## {title}", "", meaning, "", "| key | what it may be | default | |", "|---|---|---|---|"]
        for key in members:
            rows.append(f"| `{key.name}` | {_cell(key.kind)} | {_default(key.default)} | {_cell(key.meaning)} |")
    return "\n".join([*lines, *rows])


def options_page() -> str:
    """Every option of every group, with its first comment and what it sets."""
    from prdp.configuration.key_help import first_comment
    from prdp.configuration.typed import conf_folder, groups

    folder = conf_folder()
    intro = "`prdp train group=option`. The files lie in `conf/`; a folder of yours adds to them by `--config-dir`."
    lines = ["# Options of groups", "", intro]
    for group, names in groups([folder]).items():
        lines += ["", f"## {group}"]
        for name in names:
            file = folder / group / f"{name}.yaml"
            code = ["```yaml", file.read_text(encoding="utf-8").rstrip(), "```"]
            lines += ["", f"### {group}={name}", "", _prose(first_comment(file)), "", *code]
    return "\n".join(lines)


def python_page() -> str:
    """The public modules, by their docstrings."""
    return "\n\n".join(["# Python", *(f"::: {module}" for module in PYTHON)])


def _default(value: Any) -> str:
    return "" if value is MISSING or value in ({}, []) else f"`{value!r}`"


def _cell(text: str) -> str:
    return _prose(text).replace("|", "\\|").replace("\n", " ")


def _prose(text: str) -> str:
    return text.replace("<", "&lt;")


