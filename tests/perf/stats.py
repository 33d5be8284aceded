# SPDX-License-Identifier: LGPL-2.1-only
"""Medians of paired ratios and their bounds.

Rounds are few and their times are not normal, so the bounds are order statistics: the k-th smallest and the k-th
largest of n ratios hold the median between them with a probability that follows from the binomial distribution alone
(the sign test). k is the largest for which that is at least 95 %; with fewer than 6 rounds there is none, the bounds
are the smallest and the largest, and the confidence that they have is stated.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A median and its bounds. confidence is what the bounds really have."""

    median: float
    low: float
    high: float
    confidence: float
    rounds: int


def coverage(n: int, k: int) -> float:
    """The probability that the median lies between the k-th smallest and the k-th largest of n (k from 1)."""
    return 1.0 - 2.0 * sum(math.comb(n, i) for i in range(k)) / 2.0**n


def interval(values: Sequence[float]) -> Interval:
    """The median of the values, with bounds."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    n = len(ordered)
    k = 1
    while k + 1 <= n // 2 and coverage(n, k + 1) >= CONFIDENCE:
        k += 1
    return Interval(median(ordered), ordered[k - 1], ordered[n - k], max(0.0, coverage(n, k)), n)


def paired(mine: Mapping[int, float], theirs: Mapping[int, float]) -> Interval:
    """The ratio mine/theirs, round by round; a round that one of them lacks is left out."""
    common = sorted(mine.keys() & theirs.keys())
    return interval([mine[i] / theirs[i] for i in common if theirs[i] > 0])


def best(candidates: Mapping[str, Mapping[int, float]]) -> str:
    """Which has the highest median over the rounds: one competitor for the whole cell, not another each round."""
    return max(candidates, key=lambda name: median(candidates[name].values()))
