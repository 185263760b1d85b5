"""The report: complete, self-contained, and calm about whatever is missing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from strict_page import Page
from synthetic_run import add_evaluation, make_run, prompt_batch

from prdp.reports.report import NotARunError, main, write_report
from prdp.reports.report_data import changes
from prdp.reports.report_text import interval, label, score, signed, tone
from prdp.tracking.evaluations import load_evaluation, save_evaluation
from prdp.tracking.jsonl import METRICS_FILE
from prdp.types import PromptBatch


def test_the_report_shows_before_and_after_from_the_folder_alone(whole_run: Path) -> None:
    page = Page(write_report(whole_run))
    first, last = load_evaluation(whole_run, 0), load_evaluation(whole_run, 20)
    overall, _, _ = changes(first, last)
    assert overall is not None
    assert overall.difference[0] == pytest.approx((last.scores - first.scores).mean())
    for value in (overall.before[0], overall.after[0]):
        assert f"{value:.3f}" in page.text
    assert f"+{overall.difference[0]:.3f}" in page.text and "Finished after 20 epochs" in page.text
    assert "24 images of 12 prompts" in page.text
    for title in ("Before and after", "On the way", "Held-out sub-scores", "Skill by skill", "Training", "Time"):
        assert title in page.text, title
    assert prompt_batch(4).texts[3] in page.text  # with its <&> escaped, or it would not parse back
    assert "angle & bracket" in page.text and "<b>" not in page.source
    assert len(page.images) == 4 * 2 * 2 + 4 * 3  # grid: prompts, images, before and after; strip: prompts, evaluations


def test_the_report_loads_nothing_from_elsewhere(whole_run: Path) -> None:
    page = Page(write_report(whole_run))
    assert not {tag for tag, _, _ in page.attributes} & {"script", "iframe", "object", "embed", "video", "source"}
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            assert value.startswith("data:"), (tag, name, value[:60])
    style = page.source.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in page.source


@pytest.mark.parametrize(
    ("options", "sentence", "others"),
    [
        (
            {"done": 7, "evaluations": [(0, 0.0)], "status": None},
            "Not finished: 7 of 20 epochs so far",
            ["one evaluation"],
        ),
        (
            {"done": 3, "evaluations": [], "status": "failed"},
            "Stopped by an error after epoch 3 of 20",
            ["No evaluation"],
        ),
        ({"done": 12, "status": "interrupted"}, "Interrupted after epoch 12 of 20", ["after 10 epochs"]),
        ({"status": None}, "Finished after 20 epochs", ["Before and after"]),
        ({"evaluations": [(0, 0.2), (20, 0.0)]}, "Finished after 20 epochs", ["the model got worse"]),
    ],
)
def test_runs_of_every_state_get_a_report(tmp_path: Path, options: dict, sentence: str, others: list[str]) -> None:
    page = Page(write_report(make_run(tmp_path / "run", **options)))
    for part in (sentence, *others):
        assert part in page.text, part


@pytest.mark.parametrize("kept", ["config.yaml", METRICS_FILE, "evaluations"])
def test_one_part_of_a_run_is_enough(tmp_path: Path, kept: str) -> None:
    source = make_run(tmp_path / "run")
    folder = tmp_path / "part"
    folder.mkdir()
    (source / kept).rename(folder / kept)
    page = Page(write_report(folder))
    assert ("Skill by skill" in page.text) == (kept == "evaluations")
    assert ("Training" in page.text) == (kept == METRICS_FILE)


def test_a_category_that_is_called_as_a_sub_score_has_a_row_of_its_own(tmp_path: Path) -> None:
    prompts = PromptBatch(0, 0, ("a", "b"), ({"category": "color"}, {"category": "score"}))
    pictures = np.zeros((2, 4, 4, 3), np.uint8)
    save_evaluation(tmp_path, 3, prompts, 1, np.array([0.125, 0.375]), {"color": np.array([0.75, 1.0])}, pictures)
    page = write_report(tmp_path).read_text()
    rows = re.findall(r'<tr class="(\w*)"><td>(color|score)</td>\s*<td class="num">([\d.]+)', page)
    assert [(tone, name, float(value)) for tone, name, value in rows] == [
        ("total", "score", 0.25), ("", "color", 0.875), ("", "color", 0.125), ("", "score", 0.375),
    ]  # fmt: skip


def test_intervals_are_computed_from_the_scores_whatever_was_recorded(tmp_path: Path) -> None:
    """As of runs that an earlier version recorded with bootstrap intervals, and of summaries that hold anything."""
    add_evaluation(tmp_path, 0, 0.0)
    file = tmp_path / "evaluations" / "epoch_00000" / "summary.json"
    recorded = json.loads(file.read_text())
    expected = Page(write_report(tmp_path)).text
    assert f"[{recorded['score']['low']:.3f}, {recorded['score']['high']:.3f}]" in expected
    for part in (recorded["score"], *recorded["sub_scores"].values(), *recorded["categories"].values()):
        part.update(low=0.111, high=0.999, mean="<script>", images=None)
    file.write_text(json.dumps(recorded))
    assert Page(write_report(tmp_path)).text == expected


@pytest.mark.parametrize(
    "evil", ['"><script>alert(1)</script>', "' onload='alert(1)", "</title></style></svg><script>x"]
)
def test_texts_of_a_run_stay_texts(tmp_path: Path, evil: str) -> None:
    folder = tmp_path / evil.replace("/", "_")
    prompts = PromptBatch(0, 0, (f"a {evil}", "b"), ({"category": evil}, {"category": "x"}))
    pictures = np.full((2, 4, 4, 3), 200, np.uint8)
    for epoch in (0, 3):
        values = np.array([0.1, 0.5]) + epoch / 10
        save_evaluation(folder, epoch, prompts, 1, values, {evil: values, f"watch/{evil}": values}, pictures)
    (folder / "config.yaml").write_text(json.dumps({"epochs": 3, "reward": {"_target_": evil, evil: evil}, evil: evil}))
    (folder / "status.json").write_text(json.dumps({"status": evil, "started": evil, "epoch": evil, "error": evil}))
    lines = [{"epoch": epoch, f"reward/{evil}": 0.5, evil: 1.0, "reward/mean": epoch / 2} for epoch in range(3)]
    (folder / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    clean = make_run(tmp_path / "clean")
    page, plain = Page(write_report(folder)), Page(write_report(clean))
    assert page.tags <= plain.tags | {"figcaption"} and "script" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert evil in page.text


def test_missing_and_odd_metrics_do_no_harm(tmp_path: Path) -> None:
    lines = ['{"epoch": 0, "loss": "NaN", "reward/mean": 0.5}', '{"epoch": 1, "loss": "Infinity"}', '{"epoch": 2, "lo']
    (tmp_path / METRICS_FILE).write_text("\n".join(lines))
    page = Page(write_report(tmp_path))
    assert "Reward" in page.text and "Loss" not in page.text and "nan" not in page.text.lower()


def test_a_folder_that_is_no_run_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(NotARunError, match=r"is not the folder of a run: it holds none of config\.yaml"):
        main(tmp_path)
    with pytest.raises(NotARunError, match="is not a folder"):
        main(tmp_path / "nowhere")
    (tmp_path / "config.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match=r"config\.yaml is damaged"):
        main(tmp_path)


def test_other_prompts_are_never_compared(tmp_path: Path) -> None:
    make_run(tmp_path, evaluations=[(0, 0.0)])
    add_evaluation(tmp_path, 20, 0.3)
    path = tmp_path / "evaluations" / "epoch_00020" / "scores.jsonl"
    path.write_text(path.read_text().replace("disc", "ball"))
    page = Page(write_report(tmp_path))
    assert "no prompt in common" in page.text and "paired difference" not in page.text


def test_large_pictures_are_scaled_down_in_the_report(tmp_path: Path) -> None:
    make_run(tmp_path, evaluations=[(0, 0.0)], size=400)
    pictures = Page(write_report(tmp_path)).images
    assert {picture.size for picture in pictures} == {(256, 256)}


def test_a_damaged_picture_is_told_and_the_report_is_written(tmp_path: Path) -> None:
    make_run(tmp_path, epochs=4, evaluations=[(0, 0.0), (2, 0.1), (4, 0.2)])
    grid = tmp_path / "evaluations" / "epoch_00004" / "grid"
    (grid / "000_0.png").write_bytes((grid / "000_0.png").read_bytes()[:60])
    page = Page(write_report(tmp_path))
    assert page.text.count("damaged picture") == 2 and len(page.images) == 4 * 2 * 2 + 4 * 3 - 2


def test_charts_and_tables_are_named_for_those_who_do_not_see_them(whole_run: Path) -> None:
    page = Page(write_report(whole_run))
    charts = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert {"Reward", "Reward spread", "Gradient norm", "presence"} <= set(charts) and " " not in charts
    assert [value for tag, name, value in page.attributes if (tag, name) == ("th", "scope")].count("col") > 10


def test_prompts_are_counted_where_both_evaluations_have_the_same(tmp_path: Path) -> None:
    make_run(tmp_path, epochs=4, evaluations=[(0, 0.0), (4, 0.2)])
    path = tmp_path / "evaluations" / "epoch_00004" / "scores.jsonl"
    path.write_text(path.read_text().replace("number 3 ", "number three "))
    assert "22 images of 11 prompts" in Page(write_report(tmp_path)).text


def test_labels_say_what_is_only_watched() -> None:
    assert label("clip_score/raw") == "clip score/raw"
    assert label("watch/image_quality") == "image quality (watched, not optimised)"


def test_what_rounds_to_zero_has_neither_sign_nor_colour(tmp_path: Path) -> None:
    assert [score(-0.0004), score(-0.0), score(-0.0006)] == ["0.000", "0.000", "\N{MINUS SIGN}0.001"]
    assert [signed(value) for value in (0.0004, -0.0004, 0.0, 0.0006)] == ["0.000", "0.000", "0.000", "+0.001"]
    assert interval((0.0, -1e-17, 1e-17), signed) == "[0.000, 0.000]"
    assert [tone(1, 1e-5), tone(-1, -1e-5), tone(0, 0.3), tone(1, 0.3), tone(-1, -0.3)] == ["", "", "", "up", "down"]
    make_run(tmp_path, evaluations=[(0, 0.0)])
    path = tmp_path / "evaluations" / "epoch_00000"
    shutil.copytree(path, tmp_path / "evaluations" / "epoch_00020")
    scores = tmp_path / "evaluations" / "epoch_00020" / "scores.jsonl"
    lines = [json.loads(line) for line in scores.read_text().splitlines()]
    lines = [{**line, "score": line["score"] - 1e-7} for line in lines]
    scores.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    summary = tmp_path / "evaluations" / "epoch_00020" / "summary.json"
    summary.write_text(summary.read_text().replace('"epoch": 0', '"epoch": 20'))
    page = Page(write_report(tmp_path))
    assert "Rounded, the paired difference is zero" in page.text
    assert not re.search(r"[-+\N{MINUS SIGN}]0\.000", page.text)
    assert not [value for _, name, value in page.attributes if name == "class" and {"up", "down"} & set(value.split())]


def test_the_report_begins_with_what_to_look_at(tmp_path: Path) -> None:
    images, prompts = np.zeros((20, 8, 8, 3), np.uint8), PromptBatch(0, 0, tuple("abcdefghij"), ({},) * 10)
    base = np.random.default_rng(0).normal(0.5, 0.1, 20)
    for epoch, rise in ((0, 0.0), (5, 0.1)):
        pictures = {"saturation": base + 5 * rise}
        save_evaluation(tmp_path, epoch, prompts, 2, base + rise, {"watch/<size>": base - rise}, images, pictures)
    text = write_report(tmp_path).read_text()
    assert "The watched term &lt;size&gt; falls since epoch 5, by 0.1, while the score rises." in text
    assert "Saturation of the pictures has moved since epoch 5: by +0.5" in text
    assert "What the pictures look like" in text
    shutil.rmtree(tmp_path / "evaluations" / "epoch_00005")
    assert "Look at it" not in write_report(tmp_path).read_text()
