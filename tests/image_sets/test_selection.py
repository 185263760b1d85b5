"""What selection gains on a set, against its score files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from prdp.image_sets.reading import ImageSet
from prdp.image_sets.selection import selection_lines, selections


def stored(folder: Path, aspect: str) -> np.ndarray:
    """[prompts, images], straight from the files."""
    reward, _, name = aspect.partition(".")
    parts = []
    for file in sorted(folder.glob(f"samples/**/scores.{reward}.json")):
        content = json.loads(file.read_text())
        values = content["sub_scores"][name] if name else content["rewards"]
        parts += [math.nan if value in (None, "NaN") else float(value) for value in values]
    return np.array(parts).reshape(-1, 2)


def test_means_and_quartiles_are_those_of_the_score_files(base_set: Path) -> None:
    found = {one.aspect: one for one in selections(ImageSet.open(base_set))}
    assert {"shapes_judge", "shapes_judge.color", "shapes_judge.relation", "redness"} <= set(found)
    for aspect in ("shapes_judge", "shapes_judge.color", "redness"):
        scores = stored(base_set, aspect)
        assert found[aspect].prompts == 4
        assert found[aspect].mean == pytest.approx(scores.mean())
        assert found[aspect].best == pytest.approx(scores.max(1))


def test_prompts_that_an_aspect_does_not_apply_to_are_left_out(base_set: Path) -> None:
    scores = stored(base_set, "shapes_judge.relation")
    applies = np.isfinite(scores).all(1)
    assert 0 < applies.sum() < 4
    [relation] = [one for one in selections(ImageSet.open(base_set)) if one.aspect.endswith("relation")]
    assert relation.prompts == applies.sum()
    assert relation.mean == pytest.approx(scores[applies].mean())


def test_the_table_has_a_line_for_every_aspect(base_set: Path) -> None:
    one = ImageSet.open(base_set)
    head, *lines = selection_lines(one)
    assert "best of 2" in head
    assert [line.split()[0] for line in lines] == [selection.aspect for selection in selections(one)]
    mean, best, *quartiles = (float(cell) for cell in lines[0].split()[2:])
    scores = stored(base_set, "shapes_judge")
    assert (mean, best) == pytest.approx((scores.mean(), scores.max(1).mean()), rel=1e-3)
    assert quartiles == pytest.approx(np.quantile(scores.max(1), (0.25, 0.5, 0.75)), rel=1e-3)
