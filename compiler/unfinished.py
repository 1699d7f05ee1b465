"""The manifest of a deferred build: what was made, what lacks, and the accuracy that is known early."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compiler.deferral import Lack, reach, sentence
from compiler.manifest import HOST, accuracy, failed, head, row_of
from compiler.outcome import Outcome
from compiler.plan import CandidatePlan, Plan, evaluation_name
from compiler.preparation import early_name
from compiler.runtime import host
from compiler.runtime.verify import DEFERRED


def assemble_deferred(
    plan: Plan, outcome: Outcome, inputs: Mapping[str, Mapping[str, str]], lacks: Mapping[str, Sequence[Lack]]
) -> dict[str, Any]:
    """Like `manifest.assemble`, of a build that `lacks` what some of its candidates need."""
    all_lacks = list(dict.fromkeys(lack for items in lacks.values() for lack in items))
    return head(plan, outcome, inputs) | {
        "status": DEFERRED,
        "selected": None,
        "selected_because": f"deferred: {sentence(all_lacks)}",
        "candidates": [_candidate(plan, outcome, c, list(lacks.get(c.id, ()))) for c in plan.candidates.values()],
        "verdicts": _verdicts(plan),
        "measured_on": [_build_host()],
    }


def _candidate(plan: Plan, outcome: Outcome, candidate: CandidatePlan, lacks: list[Lack]) -> dict[str, Any]:
    row = row_of(plan, candidate, {})
    end = reach(plan, candidate)
    failure = next((outcome.failures[s] for s in candidate.steps if s in outcome.failures), None)
    if failure is not None:
        return row | failed(failure)
    evaluated = evaluation_name("report", candidate.id)
    if evaluated in outcome.results:
        row["accuracy"] = accuracy(outcome.facts(evaluated), HOST)
    if end in candidate.steps:
        made = outcome.facts(end)
        row["prepared"] = {
            "step": end,
            "size_bytes": sum(e.size for e in outcome.results[end].entries if e.path.startswith("model.")),
            "facts": {key: value for key, value in made.items() if key != "fidelity"},
        }
        row["fidelity"] = made.get("fidelity")
        if early_name(end) in outcome.results:
            row["prepared"]["accuracy"] = accuracy(outcome.facts(early_name(end)), HOST)
    reason = sentence(lacks) if lacks else "not measured before the others can be"
    return row | {"status": DEFERRED, "reason": reason}


def _verdicts(plan: Plan) -> list[dict[str, Any]]:
    """Every gate of the budget, unproven."""
    budget = plan.config.budget
    asked = {
        "latency_p95_ms": budget.latency_p95_ms, "latency_p99_ms": budget.latency_p99_ms,
        "first_answer_ms": budget.first_answer_ms, "load_p99_ms": budget.load_p99_ms,
        "peak_memory_mb": budget.peak_memory_mb, "size_mb": budget.size_mb, "accuracy_drop": budget.accuracy_drop,
        "accuracy_min": budget.accuracy_min,
    }  # fmt: skip
    return [
        {"metric": name, "bound": bound, "value": None, "result": "unproven", "reason": "deferred: not measured"}
        for name, bound in asked.items()
        if bound is not None
    ]


def _build_host() -> dict[str, Any]:
    """The entry that accuracies name. No latency was taken, so there is neither protocol nor drift."""
    return {
        "id": HOST, "kind": "proxy", "is_target": False, **host.describe(), "protocol": {}, "reference_drift": 0.0,
        "reference_ms": None, "temperature_c": None, "load_average": None, "idle": {}, "undecided": [],
    }  # fmt: skip
