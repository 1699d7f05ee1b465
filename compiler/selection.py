"""Which candidate is the best within the budget, and which accuracies must be known to say so. Pure functions on facts.

Candidates are looked at from the fastest; accuracy is asked for one at a time, and what comes after the first
that meets the budget is never evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compiler.runtime import depths

MEGABYTE = 1e6
BEST = {"latency": "is the fastest", "throughput": "has the highest throughput", "size": "is the smallest"}

Facts = dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """What is known so far. `evaluations[split][candidate]` are an evaluation's facts."""

    budget: Facts
    objective: str
    baseline: str
    trained: bool
    evaluate_all: bool
    benchmark: Facts
    evaluations: dict[str, dict[str, Facts]]


def order(evidence: Evidence) -> list[str]:
    """Candidates, best first; the baseline is not one.

    For latency and throughput: by speed-up a sample over the baseline, which is paired round by round, so that a
    drift of the machine cancels; and among those that cannot be told from the fastest, by size. Those that were
    measured in depth come first: the screening, whose speed-ups were taken at another time, put the others behind.
    For size: by size, then by speed-up.
    """
    figures = evidence.benchmark["candidates"]
    names = [name for name in figures if name != evidence.baseline]
    if evidence.objective == "size":
        return sorted(names, key=lambda n: (figures[n]["size_bytes"], -figures[n]["speedup"], n))
    rest = sorted(names, key=lambda n: (_only_screened(figures[n]), -figures[n]["speedup"], n))
    return [name for group in _groups(evidence.benchmark, rest) for name in group]


def _groups(benchmark: Facts, names: list[str]) -> list[list[str]]:
    """`names`, fastest first, in groups of those that the fastest of them cannot be told from, each by size."""
    figures = benchmark["candidates"]
    result = []
    rest = list(names)
    while rest:
        first = figures[rest[0]]
        alike = [n for n in rest if _only_screened(figures[n]) == _only_screened(first)]
        tied = [n for n in alike if n == rest[0] or _tied(benchmark, rest[0], n)]
        result.append(sorted(tied, key=lambda n: (figures[n]["size_bytes"], -figures[n]["speedup"], n)))
        rest = [n for n in rest if n not in tied]
    return result


def _only_screened(figures: Facts) -> bool:
    return bool(figures.get("depth", "confirm") != "confirm")


def _tied(benchmark: Facts, first: str, second: str) -> bool:
    """Whether the slower `second` cannot be told from `first`, which is what no claimed win between the two means.

    Where the two were not compared in the same rounds: whether its speed-up lies within the interval of first's;
    without an interval only an equal one does.
    """
    figures = benchmark["candidates"]
    for pair in benchmark.get("pairs", ()):
        if {pair["first"], pair["second"]} == {first, second} and pair["ci95"]:
            return bool(pair["claim"] not in ("faster", "slower"))
    interval = figures[first]["speedup_ci95"]
    least = interval[0] if interval else figures[first]["speedup"]
    return bool(figures[second]["speedup"] >= least)


def demand(evidence: Evidence) -> list[tuple[str, str]]:
    """The evaluations, (split, candidate), that must be run next; empty when `decide` has all that it needs."""
    if not evidence.trained:
        return []
    base = evidence.baseline
    for split in ("selection", "report"):
        have = evidence.evaluations[split]
        if split == "report":
            chosen = _choose(evidence)[0]
            wanted = [base, *([chosen] if chosen else [])]
        else:
            wanted = [base]
        if evidence.evaluate_all:
            wanted = [base, *order(evidence)]
        missing = [(split, name) for name in wanted if name not in have]
        if missing:
            # the baseline first: every other evaluation is paired with it
            return missing[:1] if missing[0][1] == base else missing
        if split == "selection" and not evidence.evaluate_all:
            for name in order(evidence):
                if hard_failure(evidence, name):
                    continue
                if name not in have:
                    return [(split, name)]
                if not accuracy_failure(evidence, have[name]):
                    break
    return []


def contenders(evidence: Evidence) -> list[str]:
    """The candidates that must be measured in depth: the chosen one, and what a screening cannot rule out against it.

    Candidates rejected on size or accuracy are excluded.
    """
    names = order(evidence)
    chosen = _choose(evidence)[0]
    if chosen is None or evidence.objective == "size":
        return names if chosen is None else [chosen]
    have = evidence.evaluations["selection"]
    figures = evidence.benchmark["candidates"]
    able = [
        name
        for name in names
        if name == chosen
        or not (hard_failure(evidence, name) or (name in have and accuracy_failure(evidence, have[name])))
    ]
    return depths.contenders({name: figures[name] for name in able}, chosen)


def decide(evidence: Evidence) -> Facts:
    """The decision: `selected`, `met`, `reason`, and for each candidate its `status` and `reason`."""
    chosen, met = _choose(evidence)
    ranking = order(evidence)
    rows: dict[str, Facts] = {evidence.baseline: {"status": "eligible", "reason": "the uncompiled baseline"}}
    for name in ranking:
        rows[name] = _status(evidence, name, chosen, met)
    return {
        "selected": chosen,
        "met": met,
        "reason": _why(evidence, ranking, chosen, met),
        "order": ranking,
        "candidates": rows,
    }


def hard_failure(evidence: Evidence, name: str) -> str | None:
    """Why a candidate is out whatever its accuracy: size anywhere, latency and memory where this host is the target."""
    figures = evidence.benchmark["candidates"][name]
    budget = evidence.budget
    size = figures["size_bytes"] / MEGABYTE
    if budget.get("size_mb") is not None and size > budget["size_mb"]:
        return f"{size:.2f} MB is above the budget of {budget['size_mb']:g} MB"
    if not evidence.benchmark["is_target"]:
        return None
    latency = figures["latency_ms"]
    end = "lower" if figures.get("depth") == "screen" else "upper"  # a brief look must not throw out
    for quantile in ("p95", "p99"):
        bound, value = budget.get(f"latency_{quantile}_ms"), latency.get(f"{quantile}_{end}")
        if bound is not None and value is not None and latency["stable"] and value > bound:
            return f"{quantile} of up to {latency[f'{quantile}_upper']:.3g} ms is above the budget of {bound:g} ms"
    first, bound = figures.get("first_answer_ms"), budget.get("first_answer_ms")
    if first and bound is not None and first["worst"] > bound:
        return f"a first answer after {first['worst']:.3g} ms is above the budget of {bound:g} ms"
    load, limit = figures.get("load"), budget.get("load_p99_ms")
    if load and limit is not None and load["p99_worst"] is not None and load["p99_worst"] > limit:
        return f"p99 of {load['p99_worst']:.3g} ms at {load['rate_per_s']:g} requests a second is above {limit:g} ms"
    memory = budget.get("peak_memory_mb")
    if memory is not None and figures["peak_memory_mb"] > memory:
        return f"{figures['peak_memory_mb']:.0f} MB of memory is above the budget of {memory:g} MB"
    return None


def accuracy_failure(evidence: Evidence, facts: Facts) -> str | None:
    """Why an evaluation does not meet the accuracy budget, or None."""
    budget = evidence.budget
    upper = budget.get("accuracy_gate") == "upper"
    drop = facts["drop_upper95"] if upper and facts["drop_upper95"] is not None else facts["drop"]
    limit = budget.get("accuracy_drop")
    if limit is not None and drop > limit:
        what = "upper bound of the drop" if upper else "drop"
        return f"{what} of {drop:.2f} points on the {facts['split']} split is above {limit:g}"
    least = budget.get("accuracy_min")
    value = facts["value_lower95"] if upper and facts["value_lower95"] is not None else facts["value"]
    if least is not None and value < least:
        what = "lower bound of the accuracy" if upper else "accuracy"
        return f"{what} of {value:.2f} % on the {facts['split']} split is below {least:g} %"
    return None


def _choose(evidence: Evidence) -> tuple[str | None, bool]:
    """The chosen candidate and whether it meets the budget; else the nearest: least drop, then best rank."""
    ranking = order(evidence)
    within = [name for name in ranking if not hard_failure(evidence, name)]
    if not evidence.trained:
        pool = within or ranking
        return (pool[0] if pool else None), bool(within)
    have = evidence.evaluations["selection"]
    for name in within:
        if name in have and not accuracy_failure(evidence, have[name]):
            return name, True
    judged = [name for name in within if name in have]
    if judged:
        return min(judged, key=lambda n: (have[n]["drop"], ranking.index(n))), False
    if not within and ranking:
        return min(ranking, key=lambda n: _excess(evidence, n)), False
    return None, False


def _excess(evidence: Evidence, name: str) -> tuple[float, str]:
    figures = evidence.benchmark["candidates"][name]
    budget = evidence.budget
    ratios = [figures["size_bytes"] / MEGABYTE / budget["size_mb"] if budget.get("size_mb") else 0.0]
    if evidence.benchmark["is_target"]:
        if budget.get("latency_p95_ms"):
            ratios.append(figures["latency_ms"]["p95_upper"] / budget["latency_p95_ms"])
        if budget.get("peak_memory_mb"):
            ratios.append(figures["peak_memory_mb"] / budget["peak_memory_mb"])
    return max(ratios), name


def _status(evidence: Evidence, name: str, chosen: str | None, met: bool) -> Facts:
    failure = hard_failure(evidence, name)
    facts = evidence.evaluations["selection"].get(name)
    if name == chosen:
        return {
            "status": "selected",
            "reason": ""
            if met
            else f"nearest to the budget: {failure or (facts and accuracy_failure(evidence, facts)) or ''}",
        }
    if failure:
        return {"status": "rejected", "reason": failure}
    if facts is None:
        if not evidence.trained:
            return {"status": "eligible", "reason": "ranked after the selected one; accuracy is not known"}
        return {"status": "skipped", "reason": "ranked after the selected one; its accuracy was not needed"}
    failure = accuracy_failure(evidence, facts)
    if failure:
        return {"status": "rejected", "reason": failure}
    return {"status": "eligible", "reason": "ranked after the selected one"}


def _why(evidence: Evidence, ranking: list[str], chosen: str | None, met: bool) -> str:
    if chosen is None:
        return "no candidate could be built"
    if not met:
        return f"no candidate meets the budget; {chosen} is the nearest"
    best = BEST[evidence.objective]
    rank = ranking.index(chosen)
    if not evidence.trained:
        return f"{chosen} {best}; its accuracy is not known"
    figures = evidence.benchmark["candidates"]
    if evidence.objective != "size":
        fastest = sorted(ranking, key=lambda n: (_only_screened(figures[n]), -figures[n]["speedup"], n))
        group_of = next(group for group in _groups(evidence.benchmark, fastest) if chosen in group)
        tied = group_of[group_of.index(chosen) + 1 :]
        if tied:
            group = ", ".join([chosen, *tied])
            return f"{chosen} is the smallest of the best, which cannot be told apart ({group})"
    passed = f" of those that the budget leaves (not {', '.join(ranking[:rank])})" if rank else ""
    rivals = [n for n in ranking if f"whether {chosen} is faster than {n}" in evidence.benchmark["undecided"]]
    if rivals and evidence.objective != "size":
        return f"{chosen} came out first{passed}, not certainly before {', '.join(rivals)}"
    return f"{chosen} {best}{passed}"
