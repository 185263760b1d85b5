"""`_target_` sections: mistakes are found before anything runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from prdp.support.errors import ConfigError
from prdp.support.targets import build, check_target

MODULE = """
class Scorer:
    def __init__(self, path, size=3, *, seed=0):
        self.path, self.size, self.seed = path, size, seed

def anything(**arguments):
    return arguments

number = 3
"""


@pytest.fixture
def scorers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder, which is not on the path."""
    (tmp_path / "scorers_here.py").write_text(MODULE)
    (tmp_path / "needs_more.py").write_text("import a_package_not_installed\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    for name in ("scorers_here", "needs_more"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "scorers_here"


@pytest.mark.parametrize(
    ("target", "arguments", "says"),
    [
        ("scorers_here.Scorer", {"path": "a", "sise": 2}, ["reward.sise=2", "'sise'", "'size'"]),
        ("scorers_here.Scorer", {"path": "a", "colour": 2}, ["reward.colour=2", "it takes path, size, seed"]),
        ("scorers_here.Scorer", {"size": 2}, ["reward.path", "must be given"]),
        ("scorers_here.Scorrer", {}, ["reward._target_=scorers_here.Scorrer", "no 'Scorrer'", "'Scorer'"]),
        ("scorers_heer.Scorer", {}, ["scorers_heer", "no module"]),
        ("scorers_here.number", {}, ["is a int", "a class or a function"]),
        ("needs_more.Scorer", {}, ["needs_more", "needs 'a_package_not_installed'", "not installed"]),
        ("prdp.rewards.rednes.Redness", {}, ["'prdp.rewards.rednes'", "'redness'"]),
        ("Scorer", {}, ["package.module.name"]),
        (
            "scorers_here.anything",
            {"inner": {"_target_": "scorers_here.Scorer"}},
            ["reward.inner.path", "must be given"],
        ),
    ],
)
def test_mistakes_are_named(scorers: str, target: str, arguments: dict[str, Any], says: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_target("reward", {"_target_": target, **arguments})
    for text in says:
        assert text in str(caught.value)


@pytest.mark.parametrize("section", [{}, {"path": "x"}, {"_target_": 3}, "redness", None])
def test_section_without_target(section: Any) -> None:
    with pytest.raises(ConfigError, match=r"prompts\.train must be a mapping with _target_"):
        check_target("prompts.train", section)


def test_what_fits_is_built(scorers: str) -> None:
    section = {
        "_target_": f"{scorers}.anything",
        "weight": 2,
        "inner": {"_target_": f"{scorers}.Scorer", "path": "p", "seed": 1},
    }
    check_target("reward", section)
    made = build("reward", section)
    assert made["weight"] == 2
    assert (made["inner"].path, made["inner"].size, made["inner"].seed) == ("p", 3, 1)
