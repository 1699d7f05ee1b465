"""Everything that is claimed about an artifact, and how it was measured."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compiler import __version__
from compiler.canonical import plain
from compiler.errors import CompilerError, StepError
from compiler.gates import sentence, status_of
from compiler.keys.environment import build_isa, interpreter
from compiler.keys.tools import tool_version
from compiler.names import check_names
from compiler.outcome import Outcome
from compiler.plan import CandidatePlan, Plan, evaluation_name
from compiler.runtime.inquiry import NoAnswerError, inquire
from compiler.runtime.verify import DEFERRED, MANIFEST, SIDECARS, files_digest
from compiler.verdicts import evaluation, verdicts_of

SCHEMA_VERSION = 1
HOST = "build-host"
FINISHED_ON = "finishing-host"
GIT_LIMIT_S = 10.0
LATENCY_KEYS = (
    "p50",
    "p90",
    "p95",
    "p95_lower",
    "p95_upper",
    "p99",
    "p99_lower",
    "p99_upper",
    "mean",
    "mad",
    "ci95",
    "n",
    "rounds",
    "batch",
    "threads",
    "streams",
    "stable",
    "unstable_reasons",
)


def assemble(
    plan: Plan,
    outcome: Outcome,
    inputs: Mapping[str, Mapping[str, str]],
    earlier_hosts: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The manifest of a finished build, in the form of `schemas/manifest.schema.json`.

    `inputs` are the files from outside that the steps read: `step.field` -> `path`, `sha256`. `earlier_hosts`: the
    entries of `measured_on` for what was found out elsewhere, of a build that was finished here.
    """
    benchmark, home = outcome.facts("benchmark"), FINISHED_ON if outcome.prepared else HOST
    verdicts = verdicts_of(plan, outcome)
    return head(plan, outcome, inputs) | {
        "status": DEFERRED
        if any(status == DEFERRED for status, _ in outcome.left_out.values())
        else status_of(verdicts),
        "selected": outcome.decision["selected"],
        "selected_because": sentence(outcome.decision["reason"], verdicts),
        "candidates": [_candidate(plan, outcome, c, benchmark, home) for c in plan.candidates.values()],
        "verdicts": [dataclasses.asdict(one) for one in verdicts],
        "measured_on": [_measured_on(benchmark, home), *earlier_hosts],
    }


def head(plan: Plan, outcome: Outcome, inputs: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """What every manifest says alike, in the order of the schema; None for what depends on whether it was measured."""
    config = plan.config
    package = outcome.facts("package")
    not_portable = _not_portable(plan, outcome)
    entries = {entry.path: entry for entry in outcome.results["package"].entries}
    files = [
        {
            **file,
            "size_bytes": entries[file["path"]].size,
            "sha256": entries[file["path"]].sha256,
            "portable": file["path"] not in not_portable,
        }
        for file in package["files"]
    ]
    try:
        check_names([file["path"] for file in files] + [MANIFEST, *SIDECARS])
    except ValueError as error:
        raise StepError(f"package: {error}", fix="give what the candidate's steps write another name") from None
    now = datetime.now(UTC)
    digest = files_digest(files)
    signature = package["signature"]
    return {
        "schema_version": SCHEMA_VERSION,
        "model": config.model.name,
        "target": config.target.name,
        "version": f"{now:%Y%m%dT%H%M%SZ}-{digest[:8]}",
        "created": now.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "digest": digest,
        "status": None,
        "signature": {"inputs": signature["inputs"], "outputs": signature["outputs"]},
        "preprocessing": signature["preprocessing"],
        "labels": signature["labels"],
        "selected": None,
        "selected_because": None,
        "baseline": config.baseline,
        "weights": {
            "trained": outcome.trained, "demo": outcome.demo, "claim": outcome.claim or None,
            "notes": outcome.weight_notes,
        },
        "files": files,
        "candidates": None,
        "budget": plain(config.budget),
        "verdicts": None,
        "measured_on": None,
        "steps": [
            {
                "name": r.name, "stage": r.stage, "key": r.key or None, "status": r.status,
                "seconds": round(r.seconds, 3), "outputs": list(r.outputs), "why": r.why,
            }
            for r in sorted(outcome.records.values(), key=lambda r: list(plan.steps).index(r.name))
        ],
        "environment": _environment(plan),
        "config": plain(config),
        "inputs": plain(inputs),
        "data": outcome.facts("samples"),
    }  # fmt: skip


def _not_portable(plan: Plan, outcome: Outcome) -> set[str]:
    """Names of delivered files that another build may write otherwise: figures, and what is bound to a machine."""
    chosen = plan.candidates.get(outcome.decision.get("selected") or "")
    maker = plan.steps[chosen.result].stage.not_portable if chosen else {}
    return {*plan.steps["package"].stage.not_portable, *maker}


def row_of(plan: Plan, candidate: CandidatePlan, options: Mapping[str, Any]) -> dict[str, Any]:
    """A candidate's entry with nothing measured yet."""
    return {
        "id": candidate.id,
        "backend": candidate.spec.backend,
        "runtime": candidate.runtime,
        "precision": candidate.spec.precision,
        "options": {"threads": plan.config.target.threads, "batch": 1, **candidate.spec.options, **options},
        "steps": list(candidate.steps),
        "result": candidate.result,
        "size_bytes": None, "latency_ms": None, "throughput_per_s": None, "peak_memory_mb": None, "speedup": None,
        "speedup_ci95": None, "load_ms": None, "first_call_ms": None, "accuracy": None, "fidelity": None,
    }  # fmt: skip


def failed(failure: CompilerError) -> dict[str, Any]:
    """Status and reason of a candidate that a step failed for, and the command that shows it again."""
    reproduce = next((line for line in failure.details if line.startswith("reproduce: ")), None)
    return {
        "status": "failed",
        "reason": failure.what,
        "reproduce": reproduce and reproduce.removeprefix("reproduce: "),
    }


def _candidate(
    plan: Plan, outcome: Outcome, candidate: CandidatePlan, benchmark: dict[str, Any], home: str
) -> dict[str, Any]:
    row = row_of(plan, candidate, benchmark.get("points", {}).get(candidate.id, {}))
    if candidate.id in outcome.left_out:
        status, reason = outcome.left_out[candidate.id]
        return row | {"status": status, "reason": reason} | _accuracies(outcome, candidate.id, home)
    failure = next((outcome.failures[s] for s in candidate.steps if s in outcome.failures), None)
    if failure is not None:
        return row | failed(failure)
    unmeasured = {**benchmark["absent"], **benchmark["failed"]}
    if candidate.id in unmeasured:
        return row | {"status": "failed", "reason": unmeasured[candidate.id]}
    figures = benchmark["candidates"][candidate.id]
    row |= {
        key: figures[key]
        for key in (
            "size_bytes",
            "throughput_per_s",
            "peak_memory_mb",
            "process_memory_mb",
            "speedup",
            "speedup_ci95",
            "load_ms",
            "first_call_ms",
        )
    }
    row["latency_ms"] = {key: figures["latency_ms"][key] for key in LATENCY_KEYS} | {
        "depth": figures["depth"],
        "on": home,
    }
    row["memory_on"] = home
    for name in ("load", "gpu", "pipeline_ms", "first_answer_ms"):
        if figures.get(name):
            row[name] = {**figures[name], "on": home}
    row |= _accuracies(outcome, candidate.id, home)
    if candidate.steps:
        made = outcome.facts(candidate.result)
        row["fidelity"] = made.get("fidelity")
        row |= {"bound_to": made["bound_to"]} if "bound_to" in made else {}
    if benchmark["speedup_reference"] != plan.config.baseline:
        row["speedup_reference"] = benchmark["speedup_reference"]
    if candidate.id == plan.config.baseline:
        row |= {"speedup": 1.0, "speedup_ci95": None}
    row |= outcome.decision["candidates"][candidate.id]
    return row


def _accuracies(outcome: Outcome, candidate: str, home: str) -> dict[str, Any]:
    """The candidate's accuracy on the report split, else on the selection split, with the host that it was taken on."""
    for split in ("report", "selection"):
        facts = evaluation(outcome, split, candidate)
        if facts:
            return {
                "accuracy": accuracy(facts, HOST if evaluation_name(split, candidate) in outcome.prepared else home)
            }
    return {}


def accuracy(facts: Mapping[str, Any], on: str) -> dict[str, Any]:
    """An evaluation's facts as a manifest says them."""
    keys = ("metric", "split", "value", "top5", "n", "drop", "drop_ci95", "drop_upper95", "value_lower95", "isa")
    baseline = {key: facts[key] for key in ("chance", "other_order") if facts.get(key)}
    return {key: facts[key] for key in keys} | baseline | {"on": on}


def _measured_on(benchmark: dict[str, Any], home: str) -> dict[str, Any]:
    return {
        "id": home,
        "kind": "native" if benchmark["is_target"] else "proxy",
        "is_target": benchmark["is_target"],
        **benchmark["host"],
        "protocol": benchmark["protocol"],
        "reference_drift": benchmark["reference_drift"],
        "reference_ms": benchmark.get("reference_ms"),
        "temperature_c": benchmark.get("temperature_c"),
        "load_average": benchmark.get("load_average"),
        "idle": benchmark["idle"],
        "undecided": benchmark["undecided"],
    }


def _environment(plan: Plan) -> dict[str, Any]:
    names = sorted({tool for step in plan.steps.values() for tool in step.stage.used_tools()})
    commit, dirty = _git()
    return {
        "compiler": __version__,
        "python": platform.python_version(),
        "interpreter": interpreter(),
        "build_isa": build_isa(),
        "packages": {name: tool_version(name) for name in names if tool_version(name) != "absent"},
        "git_commit": commit,
        "dirty": dirty,
    }


def _git() -> tuple[str | None, bool | None]:
    """Commit of the compiler's own checkout and whether it has changes; None for an installed copy."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None, None

    def ask(*arguments: str) -> str | None:
        try:
            # without optional locks: killed, it leaves none behind
            code, out, _ = inquire(["git", "--no-optional-locks", "-C", str(folder), *arguments], GIT_LIMIT_S)
        except (OSError, NoAnswerError):
            return None
        return out.strip() if code == 0 else None

    commit, changes = ask("rev-parse", "HEAD"), ask("status", "--porcelain")
    return commit or None, None if changes is None else bool(changes)
