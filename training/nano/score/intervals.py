"""95 % confidence intervals of means over pictures of which several belong to one prompt.

Pictures of one prompt are not independent, so the prompt is the unit: `values` is a list of clusters, each
with the values of one prompt's pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Z = 1.959964
Clusters = Sequence[Sequence[float]]


def mean(values: Clusters) -> float:
    """Mean over all pictures, nan where there are none."""
    number = sum(map(len, values))
    return sum(map(sum, values)) / number if number else math.nan


def variance(values: Clusters) -> float:
    """Variance of the mean between clusters: the ratio estimator for clusters of any size.

    With the mean m, and n clusters of k values each, it is the sum of (cluster's sum - k m)^2, times
    n / (n - 1), over the square of the number of pictures. nan for one cluster.
    """
    n, number, centre = len(values), sum(map(len, values)), mean(values)
    if n < 2:
        return math.nan
    away = sum((sum(cluster) - len(cluster) * centre) ** 2 for cluster in values)
    return away * n / (n - 1) / number**2


def effective(values: Clusters) -> float:
    """How many independent pictures would tell as much about a share (Kish's design effect).

    At most as many as there are; where all pictures agree, as many as there are prompts.
    """
    share, spread, number = mean(values), variance(values), sum(map(len, values))
    if share <= 0 or share >= 1 or math.isnan(spread):
        return float(len(values))
    return min(share * (1 - share) / spread, number) if spread > 0 else float(number)


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's interval of a share of `n` independent trials."""
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def of_share(values: Clusters) -> tuple[float, float]:
    """Interval of a mean of values in 0..1: Wilson's, with the effective number of pictures."""
    return wilson(mean(values), effective(values)) if values else (math.nan, math.nan)


def of_mean(values: Clusters) -> tuple[float, float]:
    """Interval of any mean: the normal one, from the variance between prompts."""
    half = Z * math.sqrt(variance(values)) if values else math.nan
    return mean(values) - half, mean(values) + half


def of_average(parts: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Interval of the plain average of independent figures (value, low, high).

    The distances of the parts' limits from their values add up in squares (Zou and Donner 2008), which keeps
    lopsided intervals lopsided.
    """
    value = sum(part[0] for part in parts) / len(parts)
    below = math.sqrt(sum((v - low) ** 2 for v, low, _ in parts)) / len(parts)
    above = math.sqrt(sum((high - v) ** 2 for v, _, high in parts)) / len(parts)
    return value - below, value + above
