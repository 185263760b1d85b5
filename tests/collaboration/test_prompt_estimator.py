"""What is told from prompts alone, against ridge regressions that were really fitted without a prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from prdp.collaboration.prompt_estimator import fit_estimator, load_estimator, prompt_features
from prdp.diffusion.conditions import Conditions
from prdp.support.errors import StartError


def test_what_is_told_of_a_prompt_was_not_learned_from_it(tmp_path: Path) -> None:
    """Against a fit of the others with the same penalty; centred and scaled as all are."""
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(size=(12, 5)), np.full((12, 1), 3.0)], axis=1)
    scores = features[:, :5] @ rng.normal(size=5) + rng.normal(size=12)
    estimator, told = fit_estimator(features, scores)
    scaled = (features[:, :5] - features[:, :5].mean(0)) / features[:, :5].std(0)

    def left_out(penalty: float) -> np.ndarray:
        found = []
        for row in range(12):
            others = np.delete(np.arange(12), row)
            design = np.concatenate([scaled[others], np.ones((11, 1))], axis=1)
            ridge = np.diag([penalty] * 5 + [0.0])
            found.append(
                np.append(scaled[row], 1.0) @ np.linalg.solve(design.T @ design + ridge, design.T @ scores[others])
            )
        return np.array(found)

    penalties = 10.0 ** np.arange(-5.0, 1.5, 0.5) * np.linalg.svd(scaled)[1][0] ** 2
    best = min((left_out(one) for one in penalties), key=lambda one: float(np.mean((one - scores) ** 2)))
    np.testing.assert_allclose(told, best, rtol=1e-9)
    assert estimator.weights[5] == 0, "what all prompts have in common tells nothing"
    conditions = Conditions({"states": torch.from_numpy(features)[:, None, :].expand(-1, 4, -1)})
    np.testing.assert_allclose(prompt_features(conditions), features)
    digest = estimator.save(tmp_path / "estimator.safetensors")
    read = load_estimator(tmp_path / "estimator.safetensors", digest)
    np.testing.assert_array_equal(read.scores(conditions), estimator.scores(conditions))
    with pytest.raises(ValueError, match="prompts have 2 features, and 6 were learned from"):
        read.scores(Conditions({"states": torch.zeros(3, 2)}))
    with pytest.raises(StartError, match="is no estimator of prompts"):
        load_estimator(tmp_path / "missing", digest)


def test_noise_alone_tells_next_to_nothing_and_two_prompts_are_refused() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(size=40)
    estimator, told = fit_estimator(rng.normal(size=(40, 60)), scores)
    assert np.mean((told - scores) ** 2) < 1.5 * scores.var()
    assert abs(estimator.intercept - scores.mean()) < 1.0
    with pytest.raises(ValueError, match="learns from 3 prompts or more"):
        fit_estimator(np.zeros((2, 2)), np.zeros(2))
