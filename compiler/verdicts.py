"""A manifest's verdicts: what `compiler.gates` says of each bound of the budget, from what a build found out."""

from __future__ import annotations

from typing import Any

from compiler import gates
from compiler.gates import Verdict
from compiler.outcome import Outcome
from compiler.plan import Plan, evaluation_name
from compiler.schema import Config
from compiler.selection import MEGABYTE
from compiler.sentences import machine


def proxy_sentence(plan: Plan, benchmark: dict[str, Any]) -> str:
    """Says in words on what the figures were taken, when it was not the target."""
    host, target = benchmark["host"], plan.config.target.name
    return f"measured on {machine(host)}, not on {target}: a proxy"


def verdicts_of(plan: Plan, outcome: Outcome) -> list[Verdict]:
    """One verdict for each bound of the budget, and for what else keeps the selected candidate from being proven."""
    rows = [*_measured(plan, outcome), *_accuracy(plan.config, outcome)]
    if not outcome.decision["met"] and not any(row.result == "fail" for row in rows):
        rows.append(gates.verdict("selection", None, None, False, outcome.decision["reason"]))
    return rows


def _measured(plan: Plan, outcome: Outcome) -> list[Verdict]:
    """On latency, start, load, memory, size, and whether it is faster than the baseline at all."""
    config, benchmark = plan.config, outcome.facts("benchmark")
    budget, chosen = config.budget, outcome.decision["selected"]
    figures = benchmark["candidates"][chosen]
    native, proxy = benchmark["is_target"], proxy_sentence(plan, benchmark)
    latency = figures["latency_ms"]
    found = [
        gates.latency("latency_p95_ms", budget.latency_p95_ms, latency, native, proxy, config.target.threads),
        gates.latency("latency_p99_ms", budget.latency_p99_ms, latency, native, proxy, config.target.threads),
    ]
    if budget.first_answer_ms is not None:
        found.append(gates.first_answer(budget.first_answer_ms, figures.get("first_answer_ms"), native, proxy))
    if budget.load_p99_ms is not None:
        found.append(gates.load(budget.load_p99_ms, figures.get("load"), latency, native, proxy))
    if budget.peak_memory_mb is not None:
        value, bound = figures["peak_memory_mb"], budget.peak_memory_mb
        ok = value <= bound if native else None
        found.append(gates.verdict("peak_memory_mb", bound, value, ok, "" if native else proxy))
    if budget.size_mb is not None:
        size = round(figures["size_bytes"] / MEGABYTE, 4)
        found.append(gates.verdict("size_mb", budget.size_mb, size, size <= budget.size_mb, ""))
    if config.objective != "size":
        against = benchmark["speedup_reference"]
        found.append(gates.speedup(chosen, against, benchmark["undecided"], figures))
    return [one for one in found if one is not None]


def _accuracy(config: Config, outcome: Outcome) -> list[Verdict]:
    """On the drop, the least accuracy, and the baseline's own."""
    budget, chosen = config.budget, outcome.decision["selected"]
    report, baseline = evaluation(outcome, "report", chosen), evaluation(outcome, "report", config.baseline)
    doubt = gates.doubt_of(baseline, config.model.accuracy)
    found = []
    if budget.accuracy_drop is not None:
        found.append(
            gates.accuracy_drop(budget.accuracy_drop, budget.accuracy_gate, report, doubt)
            if report
            else gates.verdict("accuracy_drop", budget.accuracy_drop, None, None, outcome.claim)
        )
    if budget.accuracy_min is not None:
        found.append(
            gates.accuracy_min(budget.accuracy_min, budget.accuracy_gate, report)
            if report
            else gates.verdict("accuracy_min", budget.accuracy_min, None, None, outcome.claim)
        )
    if doubt and baseline:
        found.append(gates.verdict("baseline_accuracy", config.model.accuracy, baseline["value"], None, doubt))
    return found


def evaluation(outcome: Outcome, split: str, candidate: str) -> dict[str, Any] | None:
    """The facts of a candidate's evaluation on a split, None where it was not evaluated there."""
    name = evaluation_name(split, candidate)
    return outcome.facts(name) if name in outcome.results else None
