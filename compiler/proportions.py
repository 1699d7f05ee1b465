"""Shares of samples: how sure an observed one is, and how likely it is by chance. No numpy: devices read manifests."""

from __future__ import annotations

import math

Z_95 = 1.959964
Z_95_ONE_SIDED = 1.644854


def wilson(value: float, count: int, z: float = Z_95) -> tuple[float, float]:
    """The interval, in percent, of a share of `value` percent seen in `count` samples; 95 % unless `z` says otherwise.

    Source: Wilson, 1927, "Probable Inference, the Law of Succession, and Statistical Inference".

    Raises:
        ValueError: it is not a share of any samples.
    """
    share = value / 100.0
    if count < 1 or not 0.0 <= share <= 1.0:
        raise ValueError(f"{value} % of {count} samples is not a share")
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return 100.0 * max(0.0, centre - half), 100.0 * min(1.0, centre + half)


def at_least(count: int, n: int, share: float) -> float:
    """P(X >= `count`) of a binomial distribution of `n` draws with probability `share`."""
    return _tail(range(count, n + 1), n, share)


def at_most(count: int, n: int, share: float) -> float:
    """P(X <= `count`) of a binomial distribution of `n` draws with probability `share`."""
    return _tail(range(count + 1), n, share)


def _tail(counts: range, n: int, share: float) -> float:
    if share <= 0.0 or share >= 1.0:
        return float((0 if share <= 0.0 else n) in counts)
    log_share, log_rest = math.log(share), math.log1p(-share)
    total = math.lgamma(n + 1)
    terms = (
        math.exp(total - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * log_share + (n - k) * log_rest)
        for k in counts
    )
    return min(1.0, math.fsum(terms))
