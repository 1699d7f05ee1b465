"""Statistics of latency samples, numpy only: they run where the measurement runs.

A call's latency resembles its neighbours', so intervals come from resampling blocks of neighbouring calls, not calls
(Kuensch, 1989, "The Jackknife and the Bootstrap for General Stationary Observations").
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK_CALLS = 50
RESAMPLES = 500
MAX_RESAMPLE_CALLS = 20_000
UNSTABLE_SPREAD = 0.03

Samples = NDArray[np.float64]


def blocks_of(rounds: Sequence[Samples]) -> list[Samples]:
    """Runs of up to `BLOCK_CALLS` neighbouring calls, none across two rounds."""
    result: list[Samples] = []
    for values in rounds:
        count = max(1, len(values) // BLOCK_CALLS)
        result.extend(np.array_split(values, count))
    return result


def bootstrap_quantiles(rounds: Sequence[Samples], quantiles: Sequence[float], seed: str) -> list[tuple[float, float]]:
    """95 % intervals of quantiles (0 to 1) of all calls, by resampling rounds and, within them, blocks.

    `rounds` holds one array of latencies a round, in any unit. Deterministic in `seed`.
    """
    generator = np.random.default_rng(zlib.crc32(seed.encode()))
    per_round = [blocks_of([values]) for values in rounds]
    wanted = max(1, MAX_RESAMPLE_CALLS // (BLOCK_CALLS * len(rounds)))
    draws = np.empty((RESAMPLES, len(quantiles)))
    for i in range(RESAMPLES):
        parts = []
        for r in generator.integers(len(per_round), size=len(per_round)):
            blocks = per_round[r]
            parts += [blocks[b] for b in generator.integers(len(blocks), size=min(len(blocks), wanted))]
        draws[i] = np.quantile(np.concatenate(parts), quantiles)
    return [(float(np.quantile(column, 0.025)), float(np.quantile(column, 0.975))) for column in draws.T]


def summarize(rounds: Sequence[Samples], seed: str) -> dict[str, object]:
    """The manifest's `latency_ms` figures of one candidate from its rounds, latencies in milliseconds.

    p99 is null below 100 calls. `p95_upper` is the upper end of the 95 % interval of p95: what gates are judged on.
    """
    calls = np.concatenate(list(rounds))
    median = float(np.median(calls))
    (low, high), (_, p95_upper) = bootstrap_quantiles(rounds, (0.5, 0.95), seed)
    return {
        "p50": _round(median),
        "p90": _round(float(np.quantile(calls, 0.90))),
        "p95": _round(float(np.quantile(calls, 0.95))),
        "p95_upper": _round(p95_upper),
        "p99": _round(float(np.quantile(calls, 0.99))) if len(calls) >= 100 else None,
        "mean": _round(float(calls.mean())),
        "mad": _round(float(np.median(np.abs(calls - median)))),
        "ci95": [_round(min(low, median)), _round(max(high, median))],
        "n": len(calls),
        "rounds": len(rounds),
    }


def block_spread(rounds: Sequence[Samples]) -> float:
    """Median absolute deviation of the blocks' medians over their median: how unsteady the machine was."""
    medians = np.array([np.median(block) for block in blocks_of(rounds)])
    centre = float(np.median(medians))
    return float(np.median(np.abs(medians - centre))) / centre


def paired_ratio(
    baseline: Sequence[Samples], other: Sequence[Samples], seed: str
) -> tuple[float, tuple[float, float] | None]:
    """How many times faster `other` is than `baseline`, with a 95 % interval over rounds (None below 3 rounds).

    Medians are compared within each round, as log-ratios, so that a drift of the machine between rounds cancels.
    The centre of the ratios is Hodges and Lehmann's (1963), the median of all pairwise means: one disturbed round
    in ten hardly moves it.
    """
    logs = np.log([float(np.median(a)) / float(np.median(b)) for a, b in zip(baseline, other, strict=True)])
    centre = float(_hodges_lehmann(logs[None])[0])
    count = len(logs)
    if count < 3:
        return float(np.exp(centre)), None
    generator = np.random.default_rng(zlib.crc32(seed.encode()))
    draws = _hodges_lehmann(logs[generator.integers(count, size=(2000, count))])
    # resampling n values understates their spread by sqrt((n - 1) / n)
    low, high = centre + (np.quantile(draws, (0.025, 0.975)) - centre) * np.sqrt(count / (count - 1))
    return float(np.exp(centre)), (float(np.exp(min(low, centre))), float(np.exp(max(high, centre))))


def _hodges_lehmann(rows: Samples) -> Samples:
    """The median of the means of all pairs (a value with itself too), of each row."""
    i, j = np.triu_indices(rows.shape[1])
    return np.asarray(np.median((rows[:, i] + rows[:, j]) / 2, axis=1))


def drift(reference: Sequence[Samples]) -> float:
    """Largest relative departure of a round's reference median from the median over rounds."""
    medians = np.array([np.median(values) for values in reference])
    centre = float(np.median(medians))
    return float(np.max(np.abs(medians - centre))) / centre


def _round(value: float) -> float:
    return float(f"{value:.6g}")
