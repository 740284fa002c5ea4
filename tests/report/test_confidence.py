import math

import pytest

from src.report.confidence import (
    Sample,
    detectable_difference,
    difference_interval,
    format_difference,
    paper_interval,
    t_quantile,
)


@pytest.mark.parametrize(
    ("probability", "degrees", "quantile"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.30265),
        (0.975, 2.5, 3.57465),
        (0.975, 8, 2.306),
        (0.975, 1000, 1.96234),
        (0.8, 8, 0.88889),
        (0.5, 3, 0),
    ],
)
def test_quantiles_are_those_of_the_printed_tables(probability, degrees, quantile):
    assert t_quantile(probability, degrees) == pytest.approx(quantile, rel=1e-4, abs=1e-6)


def test_the_interval_of_a_difference_is_welchs():
    one, other = Sample.of([23.56, 22.9, 23.42]), Sample.of([24.5, 23.2, 24.3])
    # scipy.stats.ttest_ind(..., equal_var=False).confidence_interval()
    expected = (-2.162262, 0.748928)
    assert difference_interval(one, other) == pytest.approx(expected, abs=1e-5)


def test_single_runs_and_equal_errors_give_no_interval():
    assert difference_interval(Sample.of([1.0]), Sample.of([1.0, 2.0])) is None
    assert difference_interval(Sample.of([1.0, 1.0]), Sample.of([2.0, 2.0])) is None
    assert difference_interval(Sample.of([1.0, 1.0]), Sample.of([2.0, 3.0])) is not None


def test_the_papers_single_run_scatters_as_our_seeds_do():
    ours, paper = Sample.of([8.0, 9.0, 10.0]), {"error": 8.75, "std": "", "runs": ""}
    half = 4.30265 * math.sqrt(1 / 3 + 1)
    assert paper_interval(ours, paper) == pytest.approx((0.25 - half, 0.25 + half), abs=1e-4)
    assert paper_interval(Sample.of([8.0]), paper) is None
    median_of_five = paper | {"runs": 5}
    half = 4.30265 * math.sqrt(1 / 3 + 1 / 5)
    expected = (0.25 - half, 0.25 + half)
    assert paper_interval(ours, median_of_five) == pytest.approx(expected, abs=1e-4)


def test_the_papers_own_standard_deviation_is_used():
    paper = {"error": 6.61, "std": 0.16, "runs": 5}
    ours = Sample.of([6.5, 6.9, 6.4])
    expected = difference_interval(ours, Sample(6.61, 0.16, 5))
    assert paper_interval(ours, paper) == expected
    assert paper_interval(Sample.of([6.5]), paper) is None


def test_the_detectable_difference_agrees_with_the_noncentral_t_distribution():
    # scipy.special.nctdtrinc(8, 0.2, 2.306) * sqrt(2 / 5), for a standard deviation of 1
    assert detectable_difference(1.0, 5) == pytest.approx(2.0244, rel=0.01)
    assert detectable_difference(0.3, 5) == pytest.approx(0.3 * detectable_difference(1.0, 5))
    assert detectable_difference(1.0, 10) == pytest.approx(1.3249, rel=0.01)


def test_a_difference_is_shown_with_its_interval_or_without():
    assert format_difference(-0.123, (-0.5, 0.256)) == "-0.12 [-0.50, +0.26]"
    assert format_difference(1.5, None, " points") == "+1.50 points (no interval)"
    assert str(Sample.of([8.0, 10.0])) == "9.00 ± 1.41"
    assert str(Sample.of([8.0])) == "8.00"
