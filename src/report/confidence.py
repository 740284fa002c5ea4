"""What the scatter over seeds allows to say: 95% intervals, and differences that seeds detect."""

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple, Self

import numpy as np

from src.tables import Row

Interval = tuple[float, float]

ANGLES = 100_000  # cells of the numerical integration, which is then exact to 6 digits


class Sample(NamedTuple):
    """The errors of some runs that differ in nothing but the seed."""

    mean: float
    std: float  # nan of a single run
    size: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Return the sample of some values."""
        # stdev divides by n - 1: the seeds are a sample of all.
        return cls(mean(values), stdev(values) if len(values) > 1 else math.nan, len(values))

    def __str__(self) -> str:
        """Format the mean and, of several values, their standard deviation."""
        return f"{self.mean:.2f}" + (f" ± {self.std:.2f}" if self.size > 1 else "")


def difference_interval(one: Sample, other: Sample) -> Interval | None:
    """Return Welch's 95% interval of the first mean minus the second.

    The standard deviations may differ, as those of a plain and a residual net do.

    Returns:
        None if one of the samples does not scatter or is a single run.
    """
    if min(one.size, other.size) < 2 or one.std == other.std == 0:
        return None
    variances = [sample.std**2 / sample.size for sample in (one, other)]
    per_degree = [v**2 / (s.size - 1) for v, s in zip(variances, (one, other), strict=True)]
    degrees = sum(variances) ** 2 / sum(per_degree)
    return _around(one.mean - other.mean, t_quantile(0.975, degrees) * math.sqrt(sum(variances)))


def paired_interval(differences: Sample) -> Interval | None:
    """Return the 95% interval of a mean of differences, each within one run.

    Returns:
        None if they do not scatter or are a single one.
    """
    if differences.size < 2 or differences.std == 0:
        return None
    error = differences.std / math.sqrt(differences.size)
    return _around(differences.mean, t_quantile(0.975, differences.size - 1) * error)


def paper_interval(ours: Sample, paper: Row) -> Interval | None:
    """Return the 95% interval of our mean error minus the paper's.

    The paper has a standard deviation for two nets only. The others, taken to be single runs, are
    assumed to scatter as our seeds do.

    Args:
        ours: Our errors.
        paper: A row of paper_results.csv.

    Returns:
        None if our runs do not scatter or are a single one.
    """
    runs = paper["runs"] or 1
    if paper["std"]:
        return difference_interval(ours, Sample(paper["error"], paper["std"], runs))
    if ours.size < 2 or ours.std == 0:
        return None
    error = ours.std * math.sqrt(1 / ours.size + 1 / runs)
    return _around(ours.mean - paper["error"], t_quantile(0.975, ours.size - 1) * error)


def format_difference(difference: float, interval: Interval | None, unit: str = "") -> str:
    """Format such as `-0.12 [-0.50, +0.26]` or `-0.93 (no interval)`."""
    bounds = f"[{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else "(no interval)"
    return f"{difference:+.2f}{unit} {bounds}"


def detectable_difference(std: float, seeds: int) -> float:
    """Return the smallest difference that a two-sided t test at 5% finds with a power of 80%.

    Args:
        std: The standard deviation over the seeds of each of two nets.
        seeds: The number of seeds of each.
    """
    degrees = 2 * seeds - 2
    quantiles = t_quantile(0.975, degrees) + t_quantile(0.8, degrees)
    return quantiles * std * math.sqrt(2 / seeds)


def t_quantile(probability: float, degrees: float) -> float:
    """Return a quantile of Student's t distribution.

    scipy has it too, but is not a direct dependency.
    """
    # With t = sqrt(degrees) * tan(angle), the density is proportional to cos(angle)^(degrees - 1),
    # on a finite range.
    edges = np.linspace(-math.pi / 2, math.pi / 2, ANGLES + 1)
    cells = np.cos((edges[1:] + edges[:-1]) / 2) ** (degrees - 1)
    distribution = np.concatenate([[0.0], np.cumsum(cells)]) / cells.sum()
    angle = np.interp(probability, distribution, edges)
    return math.sqrt(degrees) * math.tan(angle)


def _around(center: float, half: float) -> Interval:
    return center - half, center + half
