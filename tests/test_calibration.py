"""Thresholds as order statistics: what they choose by hand, ties, every rate, and what they are bound to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from prdp.calibration import PARTS, Threshold, fit, load, save
from prdp.support.errors import StartError

DIGESTS = {part: f"{part}-1" for part in PARTS}


def test_by_hand() -> None:
    scores = [0.4, 0.1, 0.3, 0.2]
    assert fit(scores, 0.5, "below") == Threshold(0.3, "below", 0.5, 0.5, 4, 1)
    assert fit(scores, 0.25, "above") == Threshold(0.3, "above", 0.25, 0.25, 4, 1)
    assert fit(scores, 0.5, "below").chooses([0.29, 0.3, np.nan]).tolist() == [True, False, False]
    assert fit(scores, 0.25, "above").chooses([0.31, 0.3, np.nan]).tolist() == [True, False, False]


@pytest.mark.parametrize("side", ["below", "above"])
def test_any_rate_chooses_the_lowest_or_highest_and_never_more(side: str) -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 100):
        scores = rng.normal(size=count)
        for rate in [*(k / count for k in range(count + 1)), 0.29, 0.5, 0.999]:
            threshold = fit(scores, rate, side)  # type: ignore[arg-type]
            wanted = round(rate * count) if abs(rate * count - round(rate * count)) < 1e-9 else int(rate * count)
            ordered = np.argsort(scores if side == "below" else -scores)
            assert set(np.flatnonzero(threshold.chooses(scores))) == set(ordered[:wanted])
            assert (threshold.realised, threshold.rate) == (wanted / count, rate)


def test_none_and_all_hold_for_scores_that_were_not_seen() -> None:
    for side in ("below", "above"):
        assert not fit([1.0, 2.0], 0, side).chooses([-1e300, 0.0, 1e300]).any()  # type: ignore[arg-type]
        assert fit([1.0, 2.0], 1, side).chooses([-1e300, 0.0, 1e300]).all()  # type: ignore[arg-type]


def test_scores_that_tie_are_left_out_together_and_told() -> None:
    scores = [1.0, 2.0, 2.0, 2.0, 3.0]
    threshold = fit(scores, 0.6, "below")
    assert (threshold.value, threshold.realised, threshold.ties) == (2.0, 0.2, 3)
    assert str(threshold) == "below 2: 20.0% of 5 scores, 60.0% were asked for, 3 of them equal to it"
    assert fit([5.0] * 4, 0.75, "above").realised == 0.0


@pytest.mark.parametrize(
    ("scores", "rate", "side", "message"),
    [
        ([], 0.5, "below", r"shape \(0,\), expected \[n\]"),
        ([[1.0]], 0.5, "below", r"shape \(1, 1\)"),
        ([1.0, np.nan, np.inf], 0.5, "below", "2 of 3 scores are not finite"),
        ([1.0], 1.5, "below", "rate=1.5: must be from 0 to 1"),
        ([1.0], float("nan"), "below", "rate=nan: must be"),
        ([1.0], 0.5, "left", "side=left: must be below or above"),
    ],
)
def test_what_cannot_be_fitted(scores: list[float], rate: float, side: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(scores, rate, side)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0, 0.3, 1])
def test_stored_exactly_and_as_json(tmp_path: Path, rate: float) -> None:
    threshold = fit(np.random.default_rng(1).normal(size=9), rate, "above")
    save(tmp_path / "new" / "tau.json", threshold, DIGESTS)
    assert load(tmp_path / "new" / "tau.json", DIGESTS) == threshold

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads((tmp_path / "new" / "tau.json").read_text(), parse_constant=refuse)


def test_another_model_scorer_sampler_or_prompts_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "tau.json"
    save(file, fit([1.0, 2.0], 0.5, "below"), DIGESTS)
    for part in PARTS:
        with pytest.raises(StartError, match=rf"another {part} \({part}-1 then, x now\); calibrate anew$"):
            load(file, {**DIGESTS, part: "x"})
    with pytest.raises(StartError, match=r"another model \(.*\), another prompts \(prompts-1 then"):
        load(file, {**DIGESTS, "model": "x", "prompts": "y"})
    with pytest.raises(ValueError, match="digests are of model, expected model, scorer, sampler, prompts"):
        load(file, {"model": "x"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        ("{", "is no threshold: JSONDecodeError"),
        ("[]", "is no threshold: TypeError"),
        ('{"format": 2}', "is no threshold: ValueError: format 2, expected 1"),
        ('{"format": 1}', "is no threshold: KeyError: 'digests'"),
        (json.dumps({"format": 1, "digests": DIGESTS, "value": "nan", "side": "below", "rate": 0, "realised": 0,
                     "count": 1, "ties": 0}), "value nan"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_threshold_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "tau.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(StartError, match=f"tau.json: .*{message}"):
        load(file, DIGESTS)
