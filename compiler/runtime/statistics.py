"""Statistics of latency samples, numpy only: they run where the measurement runs.

The data of one candidate are `rounds`: one list a round (a fresh process), of bursts, float64 arrays of neighbouring
calls' latencies in milliseconds. A call's latency resembles its neighbours', and a process's calls resemble each
other, so intervals come from resampling rounds and bursts, not calls (Kuensch, 1989, "The Jackknife and the Bootstrap
for General Stationary Observations").
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 500
MAX_RESAMPLE_CALLS = 20_000
WORTH_CLAIMING = 0.02
"""A difference below this is no win, however certain: a rebuild or a reboot changes more."""
LEAST_ROUNDS = 6
"""Below so many rounds there is no 95 % interval over rounds: the signed-rank statistic has too few values."""
LEAST_CALLS_P99 = 1000
"""Below so many calls p99 rests on fewer than ten of them."""

Samples = NDArray[np.float64]
Rounds = Sequence[Sequence[Samples]]


def bootstrap_quantiles(rounds: Rounds, quantiles: Sequence[float], seed: str) -> list[tuple[float, float]]:
    """95 % intervals of quantiles (0 to 1) of all calls, by resampling rounds and, within them, bursts.

    Deterministic in `seed`.
    """
    generator = np.random.default_rng(zlib.crc32(seed.encode()))
    longest = max(len(burst) for bursts in rounds for burst in bursts)
    wanted = max(1, MAX_RESAMPLE_CALLS // (longest * len(rounds)))
    draws = np.empty((RESAMPLES, len(quantiles)))
    for i in range(RESAMPLES):
        parts = []
        for r in generator.integers(len(rounds), size=len(rounds)):
            bursts = rounds[r]
            parts += [bursts[b] for b in generator.integers(len(bursts), size=min(len(bursts), wanted))]
        draws[i] = np.quantile(np.concatenate(parts), quantiles)
    return [(float(np.quantile(column, 0.025)), float(np.quantile(column, 0.975))) for column in draws.T]


def summarize(rounds: Rounds, seed: str) -> dict[str, object]:
    """The manifest's `latency_ms` figures of one candidate.

    p99 is null below 1,000 calls. `p95_upper` and `p99_upper` are the upper ends of the 95 % intervals of p95 and p99:
    what gates are judged by; `p95_lower` and `p99_lower` are the other ends.
    """
    calls = flatten(rounds)
    median = float(np.median(calls))
    (low, high), (p95_lower, p95_upper), p99 = bootstrap_quantiles(rounds, (0.5, 0.95, 0.99), seed)
    enough = len(calls) >= LEAST_CALLS_P99
    return {
        "p50": _round(median),
        "p90": _round(float(np.quantile(calls, 0.90))),
        "p95": _round(float(np.quantile(calls, 0.95))),
        "p95_lower": _round(p95_lower),
        "p95_upper": _round(p95_upper),
        "p99": _round(float(np.quantile(calls, 0.99))) if enough else None,
        "p99_lower": _round(p99[0]) if enough else None,
        "p99_upper": _round(p99[1]) if enough else None,
        "mean": _round(float(calls.mean())),
        "mad": _round(float(np.median(np.abs(calls - median)))),
        "ci95": [_round(min(low, median)), _round(max(high, median))],
        "n": len(calls),
        "rounds": len(rounds),
    }


def flatten(rounds: Rounds) -> Samples:
    """All calls, in the order in which they were made."""
    return np.concatenate([burst for bursts in rounds for burst in bursts])


def burst_spread(rounds: Rounds) -> float:
    """Median absolute deviation of the bursts' medians over their median: how unsteady the machine was."""
    medians = np.array([np.median(burst) for bursts in rounds for burst in bursts])
    centre = float(np.median(medians))
    return float(np.median(np.abs(medians - centre))) / centre


def round_range(rounds: Rounds) -> tuple[float, float]:
    """The smallest and the largest of the rounds' medians."""
    medians = [float(np.median(np.concatenate(list(bursts)))) for bursts in rounds]
    return min(medians), max(medians)


def drift(rounds: Rounds) -> float:
    """Largest relative departure of a round's median from the median over rounds."""
    medians = np.array([np.median(np.concatenate(list(bursts))) for bursts in rounds])
    centre = float(np.median(medians))
    return float(np.max(np.abs(medians - centre))) / centre


def log_ratios(baseline: Rounds, other: Rounds) -> Samples:
    """One value a round: by how much `other` is faster, as a logarithm.

    Within a round the two took turns, burst by burst, so each pair of bursts saw the same state of the machine; the
    round's value is the median over its pairs.
    """
    return np.array(
        [
            np.median([np.log(np.median(a) / np.median(b)) for a, b in zip(ours, theirs, strict=True)])
            for ours, theirs in zip(baseline, other, strict=True)
        ]
    )


def paired_ratio(logs: Samples) -> tuple[float, tuple[float, float] | None]:
    """From rounds' log-ratios to the ratio and its 95 % interval (None below 6 rounds).

    The centre is Hodges and Lehmann's, the median of the means of all pairs of values; the interval holds the centres
    that Wilcoxon's signed-rank test does not reject. It covers the truth in at least 95 % of cases whatever the
    distribution of the rounds, as long as it is symmetric, and one disturbed round hardly moves it. Source: Hollander,
    Wolfe and Chicken, 2014, "Nonparametric Statistical Methods", section 3.3.
    """
    count = len(logs)
    i, j = np.triu_indices(count)
    walsh = np.sort((logs[i] + logs[j]) / 2)
    centre = float(np.exp(np.median(walsh)))
    if count < LEAST_ROUNDS:
        return centre, None
    rank = _critical_rank(count)
    return centre, (float(np.exp(walsh[rank - 1])), float(np.exp(walsh[len(walsh) - rank])))


@functools.cache
def _critical_rank(count: int) -> int:
    """The largest k with P(T < k) <= 0.025, T being the signed-rank statistic of `count` values."""
    ways = np.zeros(count * (count + 1) // 2 + 1)
    ways[0] = 1.0
    for rank in range(1, count + 1):
        ways[rank:] += ways[:-rank].copy()
    below = np.cumsum(ways) / 2.0**count
    return int(np.searchsorted(below, 0.025, side="right"))


def claim(ratio: float, interval: Sequence[float] | None) -> str:
    """What a ratio of speeds with its interval lets one say: `faster`, `slower`, `equal` or `open`.

    A win is claimed only where the interval excludes 1 and the effect exceeds 2 %; `equal` only where the whole
    interval lies within 2 % of 1.
    """
    if interval is None:
        return "open"
    low, high = interval
    if low > 1.0 and ratio > 1.0 + WORTH_CLAIMING:
        return "faster"
    if high < 1.0 and ratio < 1.0 / (1.0 + WORTH_CLAIMING):
        return "slower"
    if low >= 1.0 / (1.0 + WORTH_CLAIMING) and high <= 1.0 + WORTH_CLAIMING:
        return "equal"
    return "open"


def settled(ratio: float, interval: Sequence[float] | None) -> bool:
    """Whether more rounds would hardly change the claim: it holds at the interval's nearer end as well."""
    if interval is None:
        return False
    near = interval[0] if ratio > 1.0 else interval[1]
    return claim(ratio, interval) == "equal" or claim(near, interval) in ("faster", "slower")


def _round(value: float) -> float:
    return float(f"{value:.6g}")
