"""What a network is scored by: top-1, top-5, or a function of the user's own; and how sure a drop in it is.

A function of one's own takes the outputs (logits, float32 (n, classes)) and the labels (int64 (n,)) of a whole split,
both read-only, and returns either

- a score a sample: an array (n,) of numbers from 0 to 1. The metric is 100 times their mean; or
- one number, higher is better, in percent or what else the budget is to be read in: it is taken as it is.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from compiler.errors import ConfigError, StepError, did_you_mean
from compiler.proportions import Z_95, Z_95_ONE_SIDED, wilson
from compiler.user_code import own_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Function = Callable[[NDArray[np.float32], NDArray[np.int64]], Any]

BUILT_IN = ("top1", "top5")
SAMPLE_RESAMPLES = 2000
CALL_RESAMPLES = 500
"""Fewer, because the function is called twice for each."""
SEED = 0


@dataclasses.dataclass(frozen=True)
class Drop:
    """A loss against the baseline on the same samples, in points (or in the unit of the user's metric).

    `ci95` is the two-sided 95 % interval; `upper95` is the one-sided 95 % upper bound, which budgets are judged by;
    `sd` is the standard deviation of the difference on a single sample, from which follows how many samples a proof
    needs (`compiler.gates.samples_to_prove`). `after_lower95` is the one-sided 95 % lower bound of the candidate's own
    value.
    """

    value: float
    ci95: tuple[float, float]
    upper95: float
    sd: float
    after_lower95: float

    def facts(self) -> dict[str, Any]:
        """The fields of an evaluation's facts."""
        return {
            "drop": round(self.value, 4),
            "drop_ci95": [round(end, 4) for end in self.ci95],
            "drop_upper95": round(self.upper95, 4),
            "drop_sd": round(self.sd, 4),
            "value_lower95": round(self.after_lower95, 4),
        }


@functools.cache
def check_name(metric: str) -> None:
    """Refuses what is neither ours nor written as the name of a function. Imports nothing.

    Raises:
        ConfigError: with the nearest name.
    """
    if metric in BUILT_IN:
        return
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", metric):
        raise ConfigError(
            f"unknown metric {metric!r}{did_you_mean(metric, BUILT_IN)}",
            fix=f"known: {', '.join(BUILT_IN)}, or a function of your own as package.module:function",
        )


def own_modules(metric: str) -> tuple[str, ...]:
    """The user's module behind a metric, where it is one of theirs."""
    return (metric.partition(":")[0],) if ":" in metric else ()


def load(metric: str) -> Function:
    """The user's function: local configuration names it, so it is trusted.

    Raises:
        ConfigError: it cannot be imported, or is no function.
    """
    module, _, name = metric.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise ConfigError(
            f"data.metric {metric!r} cannot be loaded: {type(error).__name__}: {error}",
            fix="name it package.module:function, importable from the working folder",
        ) from error
    if not callable(function):
        raise ConfigError(f"data.metric {metric!r} is a {type(function).__name__}", fix="it must be a function")
    loaded: Function = function
    return loaded


def apply(
    metric: str, function: Function, outputs: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[float, NDArray[np.float64] | None]:
    """The metric's value, and the scores a sample, float64 (n,), where it gives some.

    Raises:
        StepError: it failed, or returned something else than the two that are allowed.
    """
    import numpy as np

    outputs, labels = outputs.view(), labels.view()
    outputs.flags.writeable = labels.flags.writeable = False  # a function that changes them would spoil the next call
    try:
        returned = np.asarray(function(outputs, labels))
    except Exception as error:
        line = own_line(error)
        raise StepError(
            f"the metric {metric} failed: {type(error).__name__}: {error}{f' ({line})' if line else ''}",
            fix="it gets logits, float32 (n, classes), and labels, int64 (n,), read-only, and resamples of them",
            details=traceback.format_exc().splitlines()[-6:],
        ) from error
    if returned.shape not in ((), (len(labels),)) or returned.dtype.kind not in "biuf":
        raise StepError(
            f"the metric {metric} returned {returned.dtype} of shape {returned.shape} for {len(labels)} samples",
            fix="return one number, or an array with a score from 0 to 1 for each sample",
        )
    if not np.isfinite(returned).all():
        unfit = "" if np.isfinite(outputs).all() else "; the model's own outputs are not all finite"
        raise StepError(f"the metric {metric} returned NaN or infinity{unfit}", fix="it must give a number always")
    if returned.ndim == 0:
        return float(returned), None
    scores = returned.astype(np.float64)
    if scores.min() < 0 or scores.max() > 1:
        raise StepError(
            f"the metric {metric} returned scores a sample from {scores.min():g} to {scores.max():g}",
            fix="a sample's score is from 0 to 1 (the metric is 100 times their mean); or return one number",
        )
    return 100.0 * float(scores.mean()), scores


def paired_drop(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Drop:
    """Loss of accuracy, from the samples on which the two disagree; `before` and `after` are bool (n,), right or wrong.

    Source of the bounds: Agresti and Min, 2005, "Simple improved confidence intervals for comparing matched
    proportions" (Wald interval after adding 0.5 to each cell of the 2 x 2 table).
    """
    count = len(before)
    lost = int((before & ~after).sum())
    won = int((~before & after).sum())
    a, b, n = lost + 0.5, won + 0.5, count + 2.0
    centre = (a - b) / n
    error = ((a + b) - (a - b) ** 2 / n) ** 0.5 / n
    return Drop(
        value=100.0 * (lost - won) / count,
        ci95=(100.0 * (centre - Z_95 * error), 100.0 * (centre + Z_95 * error)),
        upper95=100.0 * (centre + Z_95_ONE_SIDED * error),
        sd=100.0 * error * n**0.5,
        after_lower95=wilson(100.0 * float(after.mean()), count, Z_95_ONE_SIDED)[0],
    )


def paired_score_drop(before: NDArray[np.float64], after: NDArray[np.float64]) -> Drop:
    """Loss from scores a sample, 0 to 1, of the same samples (n,).

    Percentile bootstrap of the differences (Efron and Tibshirani, 1993, ch. 13). Where both score every sample alike, a
    bootstrap alone would be sure of no drop at all, so Agresti and Min's pseudo-samples (half a sample lost,
    half a one won, two halves of no difference) are drawn from as well: on scores of 0 and 1 the interval is close to
    `paired_drop`'s.
    """
    import numpy as np

    differences = before - after
    # real samples stand in it twice, so that one entry of a pseudo-sample weighs half a sample
    pool = np.concatenate([differences, differences, [1.0, -1.0, 0.0, 0.0]])
    after_pool = np.concatenate([after, after, [0.0, 1.0, 0.0, 1.0]])
    generator = np.random.default_rng(SEED)
    size = len(differences) + 2
    rows = [generator.integers(len(pool), size=size) for _ in range(SAMPLE_RESAMPLES)]
    draws = 100.0 * np.asarray([pool[row].mean() for row in rows])
    after_draws = 100.0 * np.asarray([after_pool[row].mean() for row in rows])
    return _bootstrapped(100.0 * float(differences.mean()), draws, 100.0 * float(pool.std()), after_draws)


def paired_call_drop(
    metric: str,
    function: Function,
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    labels: NDArray[np.int64],
    progress: Callable[[int, int, str], None],
) -> Drop:
    """Loss where the function gives one number for all samples.

    Percentile bootstrap: each resample draws n samples with replacement and calls the function on the outputs of both,
    so that what the two share cancels. Two models with equal outputs get an interval of no width: nothing is
    known about what a sample not seen would do to the function.

    Raises:
        StepError: the function fails on a resample.
    """
    import numpy as np

    drop = apply(metric, function, before, labels)[0] - apply(metric, function, after, labels)[0]
    generator = np.random.default_rng(SEED)
    draws, after_draws = np.empty(CALL_RESAMPLES), np.empty(CALL_RESAMPLES)
    for i in range(CALL_RESAMPLES):
        rows = generator.integers(len(labels), size=len(labels))
        known = labels[rows]
        after_draws[i] = apply(metric, function, after[rows], known)[0]
        draws[i] = apply(metric, function, before[rows], known)[0] - after_draws[i]
        progress(i + 1, CALL_RESAMPLES, "resamples")
    return _bootstrapped(drop, draws, float(draws.std()) * len(labels) ** 0.5, after_draws)


def _bootstrapped(drop: float, draws: NDArray[np.float64], sd: float, after: NDArray[np.float64]) -> Drop:
    import numpy as np

    low, high, upper = (float(end) for end in np.quantile(draws, (0.025, 0.975, 0.95)))
    return Drop(drop, (min(low, drop), max(high, drop)), max(upper, drop), sd, float(np.quantile(after, 0.05)))
