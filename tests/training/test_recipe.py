from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.tones import PLAIN


@given(st.floats(0, 1))
def test_the_learning_rate_is_linear_between_its_points(fraction: float) -> None:
    points = ((0.0, 1e-4), (0.12, 1.5e-3), (0.5, 1e-3), (1.0, 1e-5))
    config = PLAIN.model_copy(update={"learning_rate": points})
    expected = np.interp(fraction, [f for f, _ in points], [rate for _, rate in points])
    assert config.learning_rate_at(fraction) == pytest.approx(expected, rel=1e-9)


def test_the_learning_rate_at_its_points() -> None:
    assert [PLAIN.learning_rate_at(f) for f in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx(
        [1e-3, 5.5e-3, 1e-2, 5.05e-3, 1e-4]
    )
