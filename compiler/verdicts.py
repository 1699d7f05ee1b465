"""Which gates of a budget are proven, which failed, and which nobody can tell: a manifest's verdicts and its status."""

from __future__ import annotations

from typing import Any

from compiler.outcome import Outcome
from compiler.plan import Plan, evaluation_name
from compiler.selection import MEGABYTE
from compiler.sentences import machine

LEAST_CALLS = 100
LEAST_ROUNDS = 6


def status_of(verdicts: list[dict[str, Any]]) -> str:
    """`pass` where every gate is proven, `budget_failed` where one failed, else `provisional`."""
    results = {verdict["result"] for verdict in verdicts}
    if "fail" in results:
        return "budget_failed"
    return "provisional" if "unproven" in results else "pass"


def proxy_sentence(plan: Plan, benchmark: dict[str, Any]) -> str:
    """Says in words on what the figures were taken, when it was not the target."""
    host, target = benchmark["host"], plan.config.target.name
    return f"measured on {machine(host)}, not on {target}: a proxy"


def verdicts_of(plan: Plan, outcome: Outcome) -> list[dict[str, Any]]:
    """One entry for each gate of the budget: `metric`, `bound`, `value`, `result`, `reason`."""
    budget, benchmark = plan.config.budget, outcome.facts("benchmark")
    chosen = outcome.decision["selected"]
    figures = benchmark["candidates"][chosen]
    native, proxy = benchmark["is_target"], proxy_sentence(plan, benchmark)
    latency = figures["latency_ms"]
    rows: list[dict[str, Any]] = []

    def add(metric: str, bound: float | None, value: float | None, ok: bool | None, reason: str) -> None:
        result = "unproven" if ok is None else "pass" if ok else "fail"
        rows.append({"metric": metric, "bound": bound, "value": value, "result": result, "reason": reason})

    bound = budget.latency_p95_ms
    if not native:
        add("latency_p95_ms", bound, latency["p95_upper"], None, proxy)
    elif bound is not None:
        short = latency["n"] < LEAST_CALLS or latency["rounds"] < LEAST_ROUNDS
        fewer = latency["threads"] != plan.config.target.threads
        stable = latency["stable"] and not short and not fewer
        reason = "upper end of the 95 % interval of p95" if stable else _doubt(latency, short, fewer)
        add("latency_p95_ms", bound, latency["p95_upper"], latency["p95_upper"] <= bound if stable else None, reason)
    if budget.load_p99_ms is not None:
        load = figures.get("load")
        value = load["p99_worst"] if load else None
        proven = native and latency["stable"] and value is not None
        reason = proxy if not native else _load_reason(load, latency)
        ok = bool(value is not None and value <= budget.load_p99_ms and load["kept_up"]) if proven else None
        add("load_p99_ms", budget.load_p99_ms, value, ok, reason)
    if budget.peak_memory_mb is not None:
        value = figures["peak_memory_mb"]
        add(
            "peak_memory_mb",
            budget.peak_memory_mb,
            value,
            value <= budget.peak_memory_mb if native else None,
            "" if native else proxy,
        )
    if budget.size_mb is not None:
        value = round(figures["size_bytes"] / MEGABYTE, 4)
        add("size_mb", budget.size_mb, value, value <= budget.size_mb, "")
    report = evaluation(outcome, "report", chosen)
    upper = budget.accuracy_gate == "upper"
    if budget.accuracy_drop is not None:
        if report is None:
            add("accuracy_drop", budget.accuracy_drop, None, None, outcome.claim)
        else:
            value = report["drop_ci95"][1] if upper else report["drop"]
            what = "upper end of the 95 % interval" if upper else "estimate"
            add(
                "accuracy_drop",
                budget.accuracy_drop,
                value,
                value <= budget.accuracy_drop,
                f"{what}, {report['n']} samples of the report split",
            )
    if budget.accuracy_min is not None:
        if report is None:
            add("accuracy_min", budget.accuracy_min, None, None, outcome.claim)
        else:
            add(
                "accuracy_min",
                budget.accuracy_min,
                report["value"],
                report["value"] >= budget.accuracy_min,
                f"{report['n']} samples of the report split",
            )
    if not outcome.decision["met"] and not any(row["result"] == "fail" for row in rows):
        add("selection", None, None, False, outcome.decision["reason"])
    return rows


def _load_reason(load: dict[str, Any] | None, latency: dict[str, Any]) -> str:
    if load is None or load["p99_worst"] is None:
        return "too few requests for a p99"
    if not latency["stable"]:
        return f"unstable: {'; '.join(latency['unstable_reasons'])}"
    behind = "" if load["kept_up"] else ", which it does not keep up with"
    return f"worst of three visits at {load['rate_per_s']:g} requests a second{behind}"


def _doubt(latency: dict[str, Any], short: bool, fewer: bool) -> str:
    """Why a latency measured on the target proves nothing all the same."""
    if fewer:
        return f"measured with {latency['threads']} threads, not with the target's"
    if short:
        return f"{latency['n']} calls in {latency['rounds']} rounds; a proof needs {LEAST_CALLS} in {LEAST_ROUNDS}"
    return f"unstable: {'; '.join(latency['unstable_reasons'])}"


def evaluation(outcome: Outcome, split: str, candidate: str) -> dict[str, Any] | None:
    """The facts of a candidate's evaluation on a split, None where it was not evaluated there."""
    name = evaluation_name(split, candidate)
    return outcome.facts(name) if name in outcome.results else None
