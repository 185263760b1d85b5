"""Numbers, tables and report of an evaluation whose images and scores were made by hand."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from evaluation_folders import IDENTITY, batch, finished_work

from prdp.evaluation import report
from prdp.evaluation.features import Pixels
from prdp.evaluation.report_dots import dots_svg
from prdp.evaluation.results import Results, gather, prompt_changes
from prdp.evaluation.settings import IMAGE_COLUMNS, check_evaluation
from prdp.evaluation.tables import DASH, alarms, legend, paper_table, print_results, write_tables
from prdp.evaluation.work import score_missing, space_name
from prdp.support.errors import ConfigError
from prdp.tracking.statistics import wilson_interval
from prdp.types import UInt8

PROMPTS = batch(["a | b", "c <d>", "e"], [{"category": "x"}, {"category": "x"}, {"category": "y"}])


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Base: black and white in turn; 'tuned': one grey for all; 'same': equal to the base."""
    base = np.zeros((6, 8, 8, 3), np.uint8)
    base[1::2] = 255
    grey = np.full_like(base, 128)
    work = finished_work(
        tmp_path,
        {"base": base, "tuned": grey, "same": base},
        {"base": [0, 1, 2, 3, 4, 5], "tuned": [1, 1, 4, 3, 3, 9], "same": [0, 1, 2, 3, 4, 5]},
        PROMPTS,
        sub_scores={"tuned": {"colour": [1, 1, np.nan, np.nan, 0, 0]}},
    )
    return gather(work, {"redness": IDENTITY}, "pixels", space_name(Pixels()))


def test_scores_differences_and_win_rates_by_hand(results: Results) -> None:
    cell = results.cell("tuned", "set", "redness")
    assert cell is not None
    assert cell.score[0] == pytest.approx(21 / 6)
    assert cell.difference[0] == pytest.approx(1.0)  # +1, 0, +2, 0, -1, +4
    assert cell.win_rate[0] == pytest.approx((1 + 0.5 + 1 + 0.5 + 0 + 1) / 6)
    assert cell.difference[1] <= cell.difference[0] <= cell.difference[2]
    same = results.cell("same", "set", "redness")
    assert same is not None
    assert same.difference == pytest.approx((0, 0, 0))
    assert same.win_rate == pytest.approx((0.5, *wilson_interval(0.5, 3)))
    base = results.cell("base", "set", "redness")
    assert base is not None
    assert np.isnan(base.difference[0])


def test_the_legend_names_sets_that_have_no_interval() -> None:
    config = SimpleNamespace(confidence=0.9)
    work = SimpleNamespace(config=config, prompts={"one": [0], "two": [0, 1]})
    results: Any = SimpleNamespace(work=work, features="pixels")
    assert "90% intervals over prompts" in legend(results)
    assert "One prompt gives no interval: one." in legend(results)


def test_categories_and_sub_scores(results: Results) -> None:
    one, other = (results.cell("tuned", "set", "redness", f"category: {name}") for name in "xy")
    assert one is not None and other is not None
    assert (one.score[0], one.images) == (pytest.approx(9 / 4), 4)
    assert (other.score[0], other.images) == (pytest.approx(6.0), 2)
    assert np.isnan(other.score[1])  # a single prompt says nothing about the spread between prompts
    sub = results.cell("tuned", "set", "redness", "sub-score: colour")
    assert sub is not None
    assert (sub.score[0], sub.images) == (pytest.approx(0.5), 4)


def test_diversity_drift_and_the_alarm(results: Results) -> None:
    base, tuned, same = (results.spread(name, "set") for name in ("base", "tuned", "same"))
    assert base.diversity[0] == pytest.approx(1.0)
    assert (tuned.diversity[0], tuned.relative) == (pytest.approx(0.0), pytest.approx(0.0))
    assert tuned.drift[0] == pytest.approx((128 / 255 + 127 / 255) / 2)
    assert (same.relative, same.drift[0]) == (pytest.approx(1.0), pytest.approx(0.0))
    assert [one.collapsed for one in results.spreads] == [False, True, False]
    [alarm] = alarms(results)
    assert "tuned" in alarm and "collapse_below=0.5" in alarm


def test_prompts_that_gained_and_lost(results: Results) -> None:
    np.testing.assert_allclose(prompt_changes(results, "tuned", "set", "redness"), [0.5, 1.0, 1.5])


def test_paper_table_has_a_column_for_each_category(results: Results) -> None:
    header, rows = paper_table(results)
    assert header == ["reward", "model", "passes", "set", "x", "y"]
    assert rows[1] == ["redness", "tuned", DASH, "3.5000", "2.2500", "6.0000"]


def test_files(results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tables(results)
    content = json.loads((tmp_path / "results.json").read_text())
    [tuned] = [row for row in content["scores"] if row["model"] == "tuned" and row["part"] == "all"]
    assert tuned["difference"] == pytest.approx(1.0)
    assert content["spread"][1]["collapsed"] is True
    assert content["spread"][1]["sample_seconds"] == pytest.approx(6.0)
    with (tmp_path / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    assert sorted({*rows[0]} - {*results.rewards}) == sorted(IMAGE_COLUMNS)
    assert all((tmp_path / row["file"]).is_file() for row in rows)
    assert [float(row["redness"]) for row in rows if row["model"] == "tuned"] == [1, 1, 4, 3, 3, 9]
    with (tmp_path / "results.csv").open(newline="") as file:
        assert {row["part"] for row in csv.DictReader(file)} >= {"all", "category: x", "sub-score: colour"}
    assert f"| redness | tuned | {DASH} | 3.5000 |" in (tmp_path / "results.md").read_text()
    print_results(results)
    shown = capsys.readouterr().out
    assert "+1.000" in shown and "collapse: on set" in shown


def test_report_is_one_self_contained_page(results: Results) -> None:
    text = report.write_report(results).read_text()
    assert "<script" not in text and "http" not in re.sub(r"data:[^\"]+|http-equiv", "", text)
    assert "c &lt;d&gt;" in text and "c <d>" not in text
    assert "Alarm:" in text
    for part in ("Mean scores", "Rewards beside each other", "Side by side", "Largest gains", "Largest losses"):
        assert part in text
    assert text.count("<img") >= 9


@pytest.mark.parametrize(
    "evil", ['"><script>alert(1)</script>', "' onload='alert(1)", "</title></svg><script>x", '=HYPERLINK("http://x")']
)
def test_texts_of_prompts_and_rewards_stay_texts(tmp_path: Path, evil: str) -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    values = {"base": [0, 1, 2, 3], "only": [1, 2, 3, 5]}
    work = finished_work(
        tmp_path,
        {"base": images, "only": images},
        values,
        batch([f"a {evil}", evil], [{"category": evil}, {"category": f"{evil} x"}]),
        sub_scores={"only": {evil: [1, 2, 3, 4]}},
    )
    results = gather(work, {"redness": IDENTITY}, "pixels", space_name(Pixels()))
    tags: set[str] = set()
    attributes: set[str] = set()
    parser = HTMLParser()
    parser.handle_starttag = parser.handle_startendtag = lambda tag, attrs: (  # type: ignore[method-assign]
        tags.add(tag), attributes.update(name for name, _ in attrs),
    )  # fmt: skip
    parser.feed(report.page(results))
    assert "script" not in tags and {"svg", "img", "table"} <= tags
    assert not [name for name in attributes if name.startswith("on")]
    write_tables(results)
    for name in ("results.csv", "images.csv"):
        with (tmp_path / name).open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert any(evil in cell for cell in cells)
        assert not [cell for cell in cells if cell.startswith(("=", "+", "@", "\t"))]


def test_no_comparison_without_a_base(tmp_path: Path) -> None:
    images = np.zeros((2, 8, 8, 3), np.uint8)
    work = finished_work(tmp_path, {"only": images}, {"only": [1, 2]}, batch(["a"]), against=None)
    results = gather(work, {"redness": IDENTITY}, "pixels", space_name(Pixels()))
    write_tables(results)
    assert "Rewards beside" not in report.page(results)
    assert not alarms(results)


class Tired:
    """A reward whose service is away the first time it is asked, and that writes into its images afterwards."""

    name, version, asked = "tired", "1", 0

    def score(self, images: UInt8, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Any:
        Tired.asked += 1
        if Tired.asked == 1:
            raise ConnectionError("the service is away")
        scores = images.mean((1, 2, 3))
        images.setflags(write=True)
        images[...] = 0
        return scores


def test_evaluations_ask_again_as_training_does_and_keep_their_pictures(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prdp.cluster.base.time.sleep", lambda seconds: None)
    section = {"_target_": f"{__name__}.Tired"}
    before = [chunk.images() for _, chunk in results.work.all_chunks()]
    identity = score_missing(results.work, "tired", section, print)
    key = {"identity": identity, "section": section}
    for (_, chunk), images in zip(results.work.all_chunks(), before, strict=True):
        np.testing.assert_array_equal(chunk.images(), images)
        scores = chunk.scores("tired", key)
        assert scores is not None
        np.testing.assert_array_equal(scores.rewards, images.mean((1, 2, 3)))
    assert Tired.asked == 1 + len(before)


def test_rewards_are_not_called_as_columns_of_the_images_are(results: Results) -> None:
    sections = {name: {"_target_": f"{__name__}.Tired"} for name in IMAGE_COLUMNS}
    for key in ("rewards", "watch"):
        config = dataclasses.replace(results.work.config, **{key: sections})
        with pytest.raises(ConfigError) as caught:
            check_evaluation(config)
        for name in IMAGE_COLUMNS:
            assert f"{key}.{name}: images.csv has a column of that name" in str(caught.value)


def test_names_of_the_dots_can_be_read_on_a_phone(results: Results) -> None:
    svg = dots_svg(results, "set")
    box = re.search(r'viewBox="0 0 (\d+) ', svg)
    assert box is not None
    size = re.search(r"\.dots text\.axis\{[^}]*font-size:(\d+)px", report._STYLE)
    assert size is not None
    assert int(size[1]) * 440 / int(box[1]) >= 9, "pixels of the smallest label in a picture of 440"
    assert all(model in svg for model in ("tuned", "same"))
