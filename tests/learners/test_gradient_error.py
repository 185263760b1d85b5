"""A gradient that cannot be stepped names its tensor, also when every entry is finite and only the norm is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prdp.learners.guards import gradient_error


def test_the_first_tensor_that_is_not_finite_is_named() -> None:
    error = gradient_error(3, {"down": 1.0, "mid": float("nan"), "up": float("inf")})
    assert str(error) == "the gradient of update 3 is not finite, first in tensor 'mid'"


def test_a_norm_that_overflows_names_the_largest_tensor() -> None:
    gradients = {"down": torch.full((4,), 1e30), "up": torch.full((4,), 3e30)}
    assert not torch.isfinite(torch.nn.utils.get_total_norm(list(gradients.values())))
    largest = {name: value.abs().max().item() for name, value in gradients.items()}
    assert np.isfinite(list(largest.values())).all()
    with pytest.raises(ValueError, match=r"update 7 is beyond float32: entries up to 3e\+30, in tensor 'up'"):
        raise gradient_error(7, largest)
