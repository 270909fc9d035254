from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, bootstrap, norm

from memsim.asr.bootstrap import Interval, compare, mean_changes, wer_interval

RESAMPLES = 10_000


def draw(shape: tuple[int, ...], mean: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).poisson(mean, shape)


def test_estimates_by_hand() -> None:
    result = compare([[2, 1], [4, 1]], [1, 1], [10, 10])
    assert result.difference.value == pytest.approx((3 + 5) / 2 / 20 - 2 / 20)
    assert result.relative is not None
    assert result.relative.value == pytest.approx(1.0)
    assert wer_interval([[2, 1], [4, 1]], [10, 10]).value == pytest.approx(0.2)


def test_resamples_of_one_word_utterances_are_binomial() -> None:
    """Of 100 utterances of a word, 10 wrong: a resample has Binomial(100, 0.1) errors."""
    interval = wer_interval([1] * 10 + [0] * 90, [1] * 100, resamples=RESAMPLES)
    # The tail that a quantile cuts off is known up to sqrt(p (1 - p) / RESAMPLES); five of these are 0.008.
    for found, tail in ((interval.low, 0.025), (interval.high, 0.975)):
        errors = round(100 * found)
        assert found == errors / 100
        assert binom.cdf(errors - 1, 100, 0.1) < tail + 0.008
        assert binom.cdf(errors, 100, 0.1) > tail - 0.008


def test_resamples_of_chips_are_binomial() -> None:
    """One utterance, so that chips alone vary: 5 of 20 err."""
    interval = wer_interval([[1]] * 5 + [[0]] * 15, [1], resample_chips=True, resamples=RESAMPLES)
    for found, tail in ((interval.low, 0.025), (interval.high, 0.975)):
        errors = round(20 * found)
        assert found == pytest.approx(errors / 20)
        assert binom.cdf(errors - 1, 20, 0.25) < tail + 0.008
        assert binom.cdf(errors, 20, 0.25) > tail - 0.008


def test_spreads_over_utterances_and_chips_add_up() -> None:
    """Errors a_c + b_u in utterances of equal length: Var(WER) = (Var(a) / C + Var(b) / U) / words^2, each Var of the
    sample at hand. Sums of many draws are normal, so that the interval's width is 2 x 1.96 of its root."""
    chips, utterances, words = draw((40,), 4.0, 0), draw((200,), 6.0, 1), 20
    errors = chips[:, None] + utterances[None, :]
    for resample_chips, variance in (
        (False, utterances.var() / 200),
        (True, utterances.var() / 200 + chips.var() / 40),
    ):
        interval = wer_interval(errors, [words] * 200, resample_chips=resample_chips, resamples=RESAMPLES)
        expected = 2 * norm.ppf(0.975) * np.sqrt(variance) / words
        # A 2.5 % quantile of RESAMPLES normal draws has the standard error sqrt(p (1 - p)) / (density sqrt(RESAMPLES)),
        # 0.027 of a standard deviation: each of both ends about 1.4 % of half the width.
        assert interval.high - interval.low == pytest.approx(expected, rel=0.05)


def test_the_interval_of_the_ratio_is_scipy_s() -> None:
    words = 1 + draw((150,), 6.0, 0)
    baseline = np.random.default_rng(1).binomial(words, 0.1)
    system = np.random.default_rng(2).binomial(words, 0.13)
    found = compare(system, baseline, list(words), resamples=RESAMPLES).relative
    reference = bootstrap(
        (system, baseline),
        lambda s, b, axis: s.sum(axis=axis) / b.sum(axis=axis) - 1,
        paired=True,
        n_resamples=RESAMPLES,
        method="percentile",
        random_state=np.random.default_rng(3),
    )
    assert found is not None
    low, high = reference.confidence_interval
    # Each end of either interval has a standard error of 0.027 standard deviations (a quarter of the width); three of
    # the difference of two are 0.03 of the width.
    assert found.low == pytest.approx(low, abs=0.03 * (high - low))
    assert found.high == pytest.approx(high, abs=0.03 * (high - low))


def test_pairing_takes_out_what_is_common() -> None:
    words = list(1 + draw((80,), 6.0, 0))
    baseline = draw((80,), 1.0, 1)
    same = compare(baseline, baseline, words)
    assert same.difference == Interval(0.0, 0.0, 0.0)
    assert same.relative == Interval(0.0, 0.0, 0.0)
    assert same.probability_worse == 0.5
    twice = compare(2 * baseline, baseline, words)
    assert twice.relative == Interval(pytest.approx(1), pytest.approx(1), pytest.approx(1))  # type: ignore[arg-type]
    assert twice.probability_worse == 1.0
    one_word_more = compare(baseline + words, baseline, words)
    assert one_word_more.difference.low == pytest.approx(1.0)
    assert one_word_more.difference.high == pytest.approx(1.0)


def test_intervals_cover_what_they_say() -> None:
    """Of 300 draws of two systems' errors, the interval of the difference misses the truth in about 5 %."""
    rng, missed = np.random.default_rng(0), 0
    for trial in range(300):
        common = rng.binomial(8, 0.1, 120)
        system, baseline = common + rng.binomial(8, 0.03, 120), common + rng.binomial(8, 0.01, 120)
        difference = compare(system, baseline, [8] * 120, resamples=600, seed=trial).difference
        missed += not difference.low <= 0.02 <= difference.high
    # Binomial(300, 0.05) has the mean 15 and the standard deviation 3.8; percentile intervals of 120 values are a
    # little short (their variance by 1 / 120).
    assert 15 - 3 * 3.8 < missed < 15 + 4 * 3.8


def test_seeds() -> None:
    words, system, baseline = [5] * 50, draw((3, 50), 0.6, 0), draw((50,), 0.5, 1)
    first, again, other = (compare(system, baseline, words, seed=seed, resample_chips=True) for seed in (1, 1, 2))
    assert first == again
    assert first.difference.value == other.difference.value
    assert first != other


def test_a_baseline_without_errors_has_no_relative_degradation() -> None:
    result = compare([1, 0], [0, 0], [3, 3])
    assert result.relative is None
    assert result.to_dict()["relative"] is None
    assert result.difference.value == pytest.approx(1 / 6)


def test_a_baseline_that_may_be_without_errors_has_no_upper_bound() -> None:
    """One utterance of two is wrong: a quarter of the resamples has no error of the baseline."""
    relative = compare([2, 1], [1, 0], [3, 3]).relative
    assert relative is not None
    assert relative.high == float("inf")
    assert relative.to_dict() == {"value": 2.0, "low": pytest.approx(1.0), "high": None}
    neither = compare([1, 0], [1, 0], [3, 3]).relative
    assert neither == Interval(0.0, 0.0, 0.0)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=12),
    st.integers(1, 4),
)
def test_wider_confidence_is_a_wider_interval(rows: list[tuple[int, int, int]], chips: int) -> None:
    system, baseline, words = (list(column) for column in zip(*rows, strict=True))
    wide = compare([system] * chips, baseline, words, resamples=200, resample_chips=True).difference
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memsim.asr.bootstrap.CONFIDENCE", 0.5)
        narrow = compare([system] * chips, baseline, words, resamples=200, resample_chips=True).difference
    assert wide.low <= narrow.low <= narrow.high <= wide.high
    assert wide.value == pytest.approx((sum(system) - sum(baseline)) / sum(words))


@pytest.mark.parametrize(
    ("errors", "words", "message"),
    [
        ([1, 2], [3], r"errors of the shape \[2\] do not fit 1 utterances"),
        ([[[1]]], [3], r"shape \[1, 1, 1\]"),
        ([], [], r"shape \[0\]|contain words"),
        ([-1], [3], "must not be negative"),
        ([0], [0], "must contain words"),
    ],
)
def test_bad_input(errors: list[int], words: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(errors, errors, words)


def test_changes_of_a_mean_by_hand() -> None:
    rng = np.random.default_rng(0)
    baseline = rng.gamma(2.0, 1.0, 50)
    double, near, noise = 2 * baseline, baseline * rng.uniform(1.9, 2.1, 50), baseline + rng.normal(0, 0.5, 50)
    less = 0.5 * baseline
    found = mean_changes([double, near, noise, less], list(baseline))
    assert found[0].change == Interval(*[pytest.approx(1.0)] * 3)  # paired: what all utterances share is no noise
    assert found[1].change.low < near.mean() / baseline.mean() - 1 < found[1].change.high
    assert [change.is_noise for change in found] == [False, False, True, False]
    assert [change.may_be_largest for change in found] == [True, True, False, False]
    assert found == mean_changes([double, near, noise, less], list(baseline))


def test_intervals_of_a_mean_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        baseline = rng.gamma(4.0, 1.0, 60)
        (found,) = mean_changes([baseline + rng.normal(0, 1, 60)], list(baseline), resamples=400)
        held += found.is_noise
    assert 175 <= held <= 199  # 95 % of 200 are 190


def test_nothing_is_the_largest_of_noise() -> None:
    baseline = np.random.default_rng(2).gamma(2.0, 1.0, 30)
    found = mean_changes([baseline, 0.9 * baseline], list(baseline))
    assert not any(change.may_be_largest for change in found)
    assert found[0].is_noise


@pytest.mark.parametrize(("values", "baseline"), [([[1.0, 2.0]], [1.0]), ([], [1.0]), ([[1.0]], [0.0]), ([1.0], [1.0])])
def test_means_that_cannot_be_compared(values: list, baseline: list[float]) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        mean_changes(values, baseline)
