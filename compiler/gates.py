"""The one rule of what may be claimed: each bound of a budget is proven, broken, or unproven. Pure functions on facts.

A manifest's verdicts, its status, the sentence about the selected candidate, the tables and the exit code all follow
from the verdicts that these functions return.

- A latency or memory figure proves something only about the machine it was taken on, and only if it is stable. It is
  judged by the upper end of its interval.
- An accuracy drop passes if its one-sided 95 % upper bound is within the budget. With `accuracy_gate: upper` it fails
  otherwise; with `point` it fails only if the estimate itself is above the budget, and is unproven between the two.
- A drop against a baseline that is itself in doubt (at chance, in another order of classes, below what training
  reported) proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compiler.chance import SIGNIFICANT
from compiler.proportions import at_most

LEAST_CALLS = 100
LEAST_ROUNDS = 6
Z_PROOF = 1.644854 + 0.841621
"""One-sided 95 % bound, with a power of 80 %."""
CAUSES = "usual causes: another order of the classes, other normalisation than in training, other weights"

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """The judgement on one bound; `result` is `pass`, `fail` or `unproven`."""

    metric: str
    bound: float | None
    value: float | None
    result: str
    reason: str


def verdict(metric: str, bound: float | None, value: float | None, ok: bool | None, reason: str) -> Verdict:
    """A verdict; `ok` None stands for unproven."""
    return Verdict(metric, bound, value, "unproven" if ok is None else "pass" if ok else "fail", reason)


def status_of(verdicts: Sequence[Verdict]) -> str:
    """`pass` where every bound is proven, `budget_failed` where one is broken, else `provisional`."""
    results = {one.result for one in verdicts}
    if "fail" in results:
        return "budget_failed"
    return "provisional" if "unproven" in results else "pass"


def sentence(because: str, verdicts: Sequence[Verdict]) -> str:
    """Why a candidate was selected, followed by what is known of the budget."""
    failed = [one.metric for one in verdicts if one.result == "fail" and one.metric != "selection"]
    unproven = [one.metric for one in verdicts if one.result == "unproven"]
    if failed:
        return f"{because}; outside the budget: {', '.join(failed)}"
    if unproven:
        return f"{because}; unproven: {', '.join(unproven)}"
    return f"{because}, within the budget" if verdicts else because


def latency(metric: str, bound: float | None, figures: Facts, native: bool, proxy: str, threads: int) -> Verdict | None:
    """`metric` is `latency_p95_ms` or `latency_p99_ms`, judged by the upper end of the quantile's 95 % interval.

    A latency that was not taken on the target is unproven whether or not it is bounded. None: nothing was asked.
    """
    name = metric.removeprefix("latency_").removesuffix("_ms")
    value = figures.get(f"{name}_upper")
    if bound is None and (native or name != "p95"):
        return None
    if not native:
        return verdict(metric, bound, value, None, proxy)
    doubt = doubtful(figures, threads)
    if value is None:
        doubt = f"{figures['n']} calls; {name} needs 1,000"
    ok = None if doubt or bound is None or value is None else value <= bound
    return verdict(metric, bound, value, ok, doubt or f"upper end of the 95 % interval of {name}")


def doubtful(figures: Facts, threads: int) -> str:
    """Why a latency that was measured on the target proves nothing all the same; empty where it does."""
    if figures["threads"] != threads:
        return f"measured with {figures['threads']} threads, not with the target's {threads}"
    if figures["n"] < LEAST_CALLS or figures["rounds"] < LEAST_ROUNDS:
        return f"{figures['n']} calls in {figures['rounds']} rounds; a proof needs {LEAST_CALLS} in {LEAST_ROUNDS}"
    return "" if figures["stable"] else f"unstable: {'; '.join(figures['unstable_reasons'])}"


def first_answer(bound: float, found: Facts | None, native: bool, proxy: str) -> Verdict:
    """The time from the start of a process to its first answer, judged by the worst start."""
    value = found["worst"] if found else None
    reason = proxy if not native else f"worst of {found['starts']} starts" if found else "not measured"
    return verdict("first_answer_ms", bound, value, value <= bound if native and value is not None else None, reason)


def load(bound: float, found: Facts | None, figures: Facts, native: bool, proxy: str) -> Verdict:
    """p99 at a stated rate of requests, judged by the worst visit."""
    value = found["p99_worst"] if found else None
    ok = None
    if not native:
        reason = proxy
    elif found is None or value is None:
        reason = "too few requests for a p99"
    elif not figures["stable"]:
        reason = f"unstable: {'; '.join(figures['unstable_reasons'])}"
    else:
        behind = "" if found["kept_up"] else ", which it does not keep up with"
        reason = f"worst of three visits at {found['rate_per_s']:g} requests a second{behind}"
        ok = bool(value <= bound and found["kept_up"])
    return verdict("load_p99_ms", bound, value, ok, reason)


def speedup(candidate: str, baseline: str, undecided: Sequence[str], figures: Facts) -> Verdict | None:
    """Unproven where all rounds left open whether the selected candidate is faster than the baseline; else None."""
    question = f"whether {candidate} is faster than {baseline}"
    if question not in undecided:
        return None
    return verdict("speedup", None, figures["speedup"], None, f"{question} is still open after all rounds")


def accuracy_drop(bound: float, gate: str, report: Facts, doubt: str) -> Verdict:
    """The drop on the report split; `gate` is `point` or `upper`, `doubt` says what is wrong with the baseline."""
    drop, upper, count = report["drop"], report["drop_upper95"], report["n"]
    value = upper if gate == "upper" else drop
    samples = f"{count} samples of the report split"
    if doubt:
        return verdict("accuracy_drop", bound, value, None, "the baseline itself is in doubt: see baseline_accuracy")
    if upper is None:  # the baseline against itself
        return verdict("accuracy_drop", bound, value, value <= bound, samples)
    if upper <= bound:
        return verdict("accuracy_drop", bound, value, True, f"95 % upper bound {upper:.2f}, {samples}")
    needed = samples_to_prove(report["drop_sd"], bound - max(0.0, drop))
    how = f"; about {needed:,} samples would prove it" if needed else ""
    reason = f"95 % upper bound {upper:.2f} is above the budget, {samples}"
    if gate == "upper" or drop > bound:
        return verdict("accuracy_drop", bound, value, False, reason + (how if drop <= bound else ""))
    return verdict("accuracy_drop", bound, value, None, reason + how)


def accuracy_min(bound: float, gate: str, report: Facts) -> Verdict:
    """The least accuracy on the report split, judged as a drop is: by the estimate, or by the lower bound."""
    value, lower = report["value"], report["value_lower95"]
    samples = f"{report['n']} samples of the report split"
    if lower is None or lower >= bound:
        reason = samples if lower is None else f"95 % lower bound {lower:.2f}, {samples}"
        return verdict("accuracy_min", bound, value, value >= bound, reason)
    reason = f"95 % lower bound {lower:.2f} is below the budget, {samples}"
    return verdict("accuracy_min", bound, value, False if gate == "upper" or value < bound else None, reason)


def samples_to_prove(sd: float, margin: float) -> int | None:
    """How many samples give an upper bound within the budget with a probability of 80 %; None where none would.

    `sd`: of the paired difference on one sample; `margin`: the budget less the drop, both in points. Two significant
    digits, rounded up. Source: the normal approximation of Connor, 1987, "Sample size for testing differences in
    proportions for the paired-sample design".
    """
    if margin <= 0.0:
        return None
    exact = (Z_PROOF * sd / margin) ** 2
    step: int = 10 ** max(0, math.floor(math.log10(max(exact, 1.0))) - 1)
    return step * math.ceil(exact / step)


def doubt_of(baseline: Facts | None, claimed: float | None) -> str:
    """What is wrong with the baseline's own accuracy, with the usual causes; empty where nothing is.

    `baseline`: facts of its evaluation; `claimed`: percent that training reported by the same metric, or None.
    """
    if baseline is None:
        return ""
    against, order, metric = baseline.get("chance"), baseline.get("other_order"), baseline["metric"]
    if against and not against["better"]:
        share = 100.0 * against["correct"] / against["n"]
        what = (
            f"the baseline itself is hardly better than chance: {share:.1f} % of {against['n']} samples, and always "
            f"answering the commonest class gives {against['majority']:.1f} % (exact binomial test, "
            f"p = {against['p_value']:.2g})"
        )
        return f"{what}; {_hint(order)}{CAUSES}"
    if order:
        return f"the baseline itself looks wrong: {_hint(order)}{CAUSES}"
    if claimed is not None and metric in ("top1", "top5"):
        count = round(baseline["value"] * baseline["n"] / 100.0)
        if at_most(count, baseline["n"], claimed / 100.0) < SIGNIFICANT:
            return (
                f"the baseline reaches {baseline['value']:.1f} % on {baseline['n']} samples, training reported "
                f"{claimed:g} % (model.accuracy); {CAUSES}"
            )
    return ""


def _hint(order: Facts | None) -> str:
    if not order:
        return ""
    return (
        f"with the classes in another order its top-1 would be {order['reordered']:.1f} % instead of "
        f"{order['as_given']:.1f} %: give data.classes; "
    )
