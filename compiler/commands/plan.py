"""plan: prints every step of a build with its key, whether the store has it, and why it would run; runs nothing."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from compiler import deferral
from compiler.commands.arguments import parse_config_arguments
from compiler.config import compose, expand_sweep
from compiler.identity import KeyMaker, explain, key_of
from compiler.keys.memo import Memo
from compiler.plan import BRIEF, SPLITS, Plan, Step, evaluation_name, make_plan
from compiler.store import Result, Store

KEY_CHARACTERS = 12


def run(arguments: list[str]) -> int:
    """Prints the plan of every job that the overrides ask for."""
    options = parse_config_arguments("plan", __doc__ or "", arguments)
    jobs = expand_sweep(options.overrides, options.config_dirs) if options.multirun else [options.overrides]
    plans: list[dict[str, Any]] = []
    for job in jobs:
        config = compose(job, options.config_dirs)
        with Store(Path(config.artifacts_dir).absolute() / ".store") as store:
            store.objects.on_damage = lambda text: print(text, file=sys.stderr)
            keys = KeyMaker(config, Memo(store.root / "memo.json", store.write))
            plan = make_plan(config)
            keys.check_inputs(plan)
            lacks = deferral.lacking(plan)
            steps = (
                _deferred(plan, rows(plan, store, keys), lacks) if lacks and config.defer else rows(plan, store, keys)
            )
            plans.append({"model": config.model.name, "target": config.target.name, "steps": steps})
            if store.root.is_dir():
                keys.save()
    if options.json:
        print(json.dumps(plans if options.multirun else plans[0], indent=1))
        return 0
    for number, item in enumerate(plans):
        print(("\n" if number else "") + f"{item['model']} for {item['target']}")
        for line in lines(item["steps"]):
            print(line)
    return 0


def rows(plan: Plan, store: Store, keys: KeyMaker) -> list[dict[str, Any]]:
    """One row a step: `name`, `stage`, `key`, `state` (hit, miss, pending, on demand, deferred), and why.

    Raises:
        ConfigError: a step that would run could not.
    """
    results: dict[str, Result] = {}
    out = []
    scope = f"{plan.config.model.name}/{plan.config.target.name}"
    for step in plan.steps.values():
        step = _as_last_time(step, store.last(scope, step.name))  # noqa: PLW2901
        row: dict[str, Any] = {
            "name": step.name,
            "stage": step.stage_name,
            "key": None,
            "inputs": sorted(set(step.inputs.values())),
            "also": plan.shared.get(step.name, []),
        }
        waiting = [source for source in dict.fromkeys(step.inputs.values()) if source not in results]
        late = step.name in ("select", "package")
        if step.on_demand and (waiting or late):
            row |= {"state": "on demand", "why": "run if selection asks for it"}
        elif waiting or late:
            after = waiting[0] if waiting else "evaluations"
            row |= {"state": "pending", "why": f"after {after}"}
        else:
            document = keys.document(step, {role: results[s].digest for role, s in step.inputs.items()})
            document, known, outdated = keys.find(store, document, store.lookup)
            key = key_of(document)
            row["key"] = key
            if known:
                results[step.name] = known
                row |= {"state": "hit", "why": "in the store"}
            elif step.on_demand:
                row |= {"state": "on demand", "why": "run if selection asks for it"}
            else:
                why = explain(document, store.last(scope, step.name), step.inputs)
                if store.state(key) == "damaged":
                    why = "result missing or corrupt"
                row |= {"state": "miss", "why": outdated or why}
        out.append(row)
    keys.check_ahead(step for step in plan.steps.values() if step.name not in results)
    return out


def _deferred(plan: Plan, found: list[dict[str, Any]], lacks: dict[str, list[deferral.Lack]]) -> list[dict[str, Any]]:
    """The rows of a build that ends deferred here: what is left for another host says so."""
    base = [evaluation_name(split, plan.config.baseline) for split in SPLITS]
    own = {*plan.ancestors(deferral.here(plan)), *base, "package"}
    wanted = list(dict.fromkeys(lack.what for items in lacks.values() for lack in items))
    for row in found:
        if row["name"] not in own:
            row |= {"key": None, "state": "deferred", "why": f"left for finish: lacks {', '.join(wanted)}"}
        elif row["name"] in base:
            row |= {"key": None, "state": "pending", "why": "by this host's CPU, for candidates to be paired with"}
        elif row["name"] == "package":
            row |= {"why": "after evaluations"}
    return found


def _as_last_time(step: Step, last: dict[str, Any] | None) -> Step:
    """The benchmark with the contenders of the last build: which contend now is known once the screening has run."""
    known = (last or {}).get("inputs")
    brief = [name for name in BRIEF if name in step.inputs]
    if step.name != "benchmark" or not brief or not isinstance(known, dict):
        return step
    inputs = {role: source for role, source in step.inputs.items() if role in known}
    return dataclasses.replace(step, inputs=inputs) if brief[0] in inputs else step


def lines(steps: list[dict[str, Any]]) -> list[str]:
    """The rows as aligned text."""
    width = max(len(row["name"]) for row in steps)
    text = []
    for row in steps:
        key = row["key"][:KEY_CHARACTERS] if row["key"] else "-" * 3
        also = f"  (also {', '.join(row['also'])})" if row["also"] else ""
        text.append(f"  {row['name']:<{width}}  {key:<{KEY_CHARACTERS}}  {row['state']:<9}  {row['why']}{also}")
    return text
