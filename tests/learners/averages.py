"""The moving average of a learner against its formula, for learners of every framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from prdp.learners.learner import Learner

DECAY = 0.6
UPDATES = 16
"""The warm-up ends at update 13: (1 + 12) / (10 + 12) is below 0.6, and (1 + 13) / (10 + 13) above."""


def expected_average(weights: Sequence[np.ndarray], decay: float) -> np.ndarray:
    """Closed form of a_n = d_n a_{n-1} + (1 - d_n) w_n from a_0 = w_0, with d_n = min(decay, (1 + n) / (10 + n))."""
    decays = np.array([min(decay, (1 + n) / (10 + n)) for n in range(1, len(weights))])
    shares = [np.prod(decays), *((1 - decays[n]) * np.prod(decays[n + 1 :]) for n in range(len(decays)))]
    assert np.isclose(sum(shares), 1)
    return np.asarray(sum(share * value.astype(np.float64) for share, value in zip(shares, weights, strict=True)))


def check_average(build: Callable[[], Learner], set_gradient: Callable[[Learner, int], None], rtol: float) -> None:
    """Drive a learner with given gradients through and past the warm-up; also one that is resumed in it.

    Args:
        build: a learner with ema_decay=DECAY.
        set_gradient: stands in for the gradient of an update, by its number.
        rtol: of the average, relative to how far the weights went.
    """
    learner = build()
    history = [learner.weights().tensors]
    for update in range(UPDATES):
        set_gradient(learner, update)
        learner._step()
        history.append(learner.weights().tensors)
        if update == UPDATES // 4:
            saved = learner.state()
    average = learner.evaluation_weights().tensors
    for name, start in history[0].items():
        expected = expected_average([tensors[name] for tensors in history], DECAY)
        way = np.abs(history[-1][name] - start).max()
        assert way > 0
        np.testing.assert_allclose(average[name], expected, rtol=0, atol=rtol * way)
        assert np.abs(history[-1][name] - expected).max() > 0.01 * way, "the average must lag behind"

    resumed = build()
    resumed.load_state(*saved)
    for update in range(UPDATES // 4 + 1, UPDATES):
        set_gradient(resumed, update)
        resumed._step()
    for name, value in resumed.evaluation_weights().tensors.items():
        way = np.abs(history[-1][name] - history[0][name]).max()
        np.testing.assert_allclose(value, average[name], rtol=0, atol=rtol * way)
