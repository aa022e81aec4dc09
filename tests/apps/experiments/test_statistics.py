"""The comparison is right at its stated error, agrees with published results, and says why when there is none."""

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest

from apps.experiments.schemas import Comparison, NoAnswer, NoAnswerReason
from apps.experiments.statistics import Sample, compare, sample, sample_ratio, with_power

COOKIE_CATS = Path(__file__).parents[4] / "shared" / "data" / "cookie_cats" / "cookie_cats.csv.gz"


def share(name, *, units, positive):
    rate = positive / units if units else 0.0
    return Sample(name, units, positive, rate, rate * (1 - rate) * units / max(1, units - 1))


@pytest.fixture(scope="module")
def cookie_cats():
    if not COOKIE_CATS.exists():
        pytest.skip("the Cookie Cats data is not here")
    with gzip.open(COOKIE_CATS, "rt") as file:
        players = list(csv.DictReader(file))
    return {
        gate: sample(
            np.array([player["retention_7"] == "TRUE" for player in players if player["version"] == gate], dtype=float),
            name=gate,
        )
        for gate in ("gate_30", "gate_40")
    }


def test_cookie_cats_retention_after_seven_days(cookie_cats):
    result = compare(cookie_cats["gate_30"], cookie_cats["gate_40"], share=True)
    assert isinstance(result, Comparison)
    assert result.difference == pytest.approx(-0.0082, abs=5e-5)
    assert result.difference_interval.low == pytest.approx(-0.0133, abs=5e-5)
    assert result.difference_interval.high == pytest.approx(-0.0031, abs=5e-5)
    assert result.p_value == pytest.approx(0.0016, abs=5e-5)


def test_cookie_cats_sample_ratio(cookie_cats):
    result = sample_ratio([cookie_cats["gate_30"].units, cookie_cats["gate_40"].units], [0.5, 0.5])
    assert result.p_value == pytest.approx(0.0086, abs=5e-5)
    assert result.verdict == "unusual"


def test_no_difference_is_found_about_one_time_in_twenty():
    rng = np.random.default_rng(20261101)
    runs, significant = 600, {"share": 0, "value": 0, "ratio": 0}
    for _ in range(runs):
        bought = rng.random((2, 1_000)) < 0.08
        spent = bought * rng.lognormal(3, 1, (2, 1_000))
        # Who is shown more buys more of it: counted as independent items, one pair in three would differ.
        shown = rng.geometric(0.1, (2, 1_000)).astype(float)
        bought_of_shown = rng.binomial(shown.astype(int), rng.beta(0.5, 4.5, (2, 1_000))).astype(float)
        for name, values in (("share", bought.astype(float)), ("value", spent), ("ratio", bought_of_shown)):
            arms = [sample(values[arm], name=str(arm), per=shown[arm] if name == "ratio" else None) for arm in range(2)]
            result = compare(*arms, share=name == "share")
            assert isinstance(result, Comparison)
            significant[name] += result.p_value < 0.05
    for name, count in significant.items():
        assert 0.03 <= count / runs <= 0.07, name


def test_a_ratio_is_all_values_over_all_they_are_counted_per():
    result = sample(np.array([1.0, 0.0, 3.0]), name="A", per=np.array([10.0, 20.0, 10.0]))
    assert result.mean == pytest.approx(4 / 40)
    assert (result.units, result.positive) == (3, 2)


def test_the_stated_smallest_effect_is_found_four_times_in_five():
    rng = np.random.default_rng(3)
    control = share("A", units=4_000, positive=400)
    result = compare(control, share("B", units=4_000, positive=400), share=True)
    detectable = with_power(result, control, share("B", units=4_000, positive=400)).detectable_difference
    runs, significant = 300, 0
    for _ in range(runs):
        arms = [rng.binomial(4_000, rate) for rate in (0.1, 0.1 + detectable)]
        samples = (share(name, units=4_000, positive=n) for name, n in zip("AB", arms, strict=True))
        repeated = compare(*samples, share=True)
        significant += repeated.p_value < 0.05
    assert 0.74 <= significant / runs <= 0.86


@pytest.mark.parametrize(
    ("control", "treatment", "reason", "message"),
    [
        ((0, 0), (50, 5), NoAnswerReason.EMPTY_VARIATION, "no unit has seen A yet"),
        ((0, 0), (0, 0), NoAnswerReason.EMPTY_VARIATION, "A or B"),
        ((50, 9), (29, 9), NoAnswerReason.TOO_FEW_UNITS, "B has 29 of the 30 units"),
        ((500, 0), (500, 0), NoAnswerReason.ZERO_VARIANCE, "same value, 0"),
        ((500, 500), (500, 500), NoAnswerReason.ZERO_VARIANCE, "same value, 1"),
        ((500, 4), (500, 5), NoAnswerReason.TOO_FEW_OUTCOMES, "only 9 of 1,000 units have the outcome"),
        ((500, 496), (500, 495), NoAnswerReason.TOO_FEW_OUTCOMES, "only 9 of 1,000 units lack the outcome"),
        ((500, 0), (500, 500), NoAnswerReason.ZERO_VARIANCE, "do not vary within"),
    ],
)
def test_every_missing_answer_has_its_own_reason(control, treatment, reason, message):
    arms = [share(name, units=units, positive=n) for name, (units, n) in zip("AB", (control, treatment), strict=True)]
    result = compare(*arms, share=True)
    assert isinstance(result, NoAnswer)
    assert result.reason is reason
    assert message in result.message


def test_a_variation_that_ruins_everything_is_not_hidden_behind_too_few_outcomes():
    result = compare(share("A", units=1_000, positive=100), share("B", units=1_000, positive=0), share=True)
    assert isinstance(result, Comparison)
    assert result.difference_interval.high < 0
    assert result.lift == -1
    assert result.lift_interval is None


def test_a_control_of_zero_has_a_difference_but_no_lift():
    control, treatment = share("A", units=1_000, positive=0), share("B", units=1_000, positive=100)
    result = compare(control, treatment, share=True)
    assert isinstance(result, Comparison)
    assert result.lift is None
    assert result.difference == pytest.approx(0.1)
    assert with_power(result, control, treatment).detectable_lift is None


@pytest.mark.parametrize(
    ("units", "weights", "verdict"),
    [
        ([0, 0], [0.5, 0.5], "unknown"),
        ([5, 0], [0.5, 0.5], "ok"),
        ([0, 40], [0.5, 0.5], "alarm"),
        ([900, 100], [0.9, 0.1], "ok"),
        ([10_000, 10_700], [0.5, 0.5], "alarm"),
        ([3_000, 3_050, 2_950], [1 / 3, 1 / 3, 1 / 3], "ok"),
        ([3_000, 3_400, 3_000], [1 / 3, 1 / 3, 1 / 3], "alarm"),
    ],
)
def test_sample_ratio_verdicts(units, weights, verdict):
    assert sample_ratio(units, weights).verdict == verdict
