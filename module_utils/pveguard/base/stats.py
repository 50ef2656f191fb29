"""Percentiles of measured samples, the same for disks and links."""

from __future__ import annotations

from collections.abc import Sequence


def percentile(ranked: Sequence[float], fraction: float) -> float:
    """The nearest-rank percentile of ``ranked``, which is sorted and not empty; ``fraction`` is 0 to 1.

    With fewer than 1 / (1 - fraction) samples that is the maximum: no value is ever made up between two.
    """
    rank = int(-(-len(ranked) * fraction // 1))
    return ranked[min(len(ranked), max(1, rank)) - 1]


def mean_difference(values: Sequence[float]) -> float:
    """Mean absolute difference of neighbours; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    pairs = zip(values, values[1:], strict=False)
    return sum(abs(second - first) for first, second in pairs) / (len(values) - 1)
