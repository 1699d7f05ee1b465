"""What a build needs, in which order, and what the outcome of one step means for the next."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from compiler.canonical import plain
from compiler.conversion import SIGNATURE
from compiler.deferral import handed_on, here, reach
from compiler.errors import StepError
from compiler.identity import KeyMaker
from compiler.outcome import Outcome, Watcher
from compiler.plan import BRIEF, Plan, evaluation_name
from compiler.preparation import add_packing, early_evaluations, on_cpu
from compiler.selection import Evidence, contenders, demand
from compiler.store import Store
from compiler.walker import Walker


class Runner:
    """Runs one plan."""

    def __init__(
        self, plan: Plan, store: Store, keys: KeyMaker, watcher: Watcher, outcome: Outcome | None = None
    ) -> None:
        """`outcome`: what another host found out, of a build that is finished here."""
        self._plan = plan
        self._store = store
        self._walker = Walker(plan, store, keys, watcher)
        self._outcome = self._walker.outcome = outcome or Outcome()
        self._leave_out()

    def run(self) -> Outcome:
        """Runs what a build needs, evaluations only as far as selection asks for them.

        Raises:
            CompilerError: a step that everything depends on failed, or no candidate is left.
        """
        plan, config = self._plan, self._plan.config
        first = next((name for name in BRIEF if name in plan.steps), "benchmark")
        self._walker.ensure([first])
        self._check_any_left(config.candidates)
        self._read_claim()
        self._evaluate(first)
        if first != "benchmark":
            self._confirm(first)
        self._select()
        self._package()
        return self._outcome

    def prepare(self) -> Outcome:
        """Runs what can be run here of a build that lacks something, and packs it for another host to finish.

        The accuracy of the baseline is taken here, on the CPU, for candidates to be paired with; and that of what was
        quantized or cast, which says early whether it is worth going on.

        Raises:
            CompilerError: a step that everything depends on failed, or no candidate is left.
        """
        outcome, plan = self._outcome, self._plan
        base = plan.config.baseline
        ends = {c.id: reach(plan, c) for c in plan.candidates.values()}
        self._walker.ensure(here(plan))
        self._check_any_left([name for name in plan.config.candidates if name != base], ends)
        self._read_claim()
        if outcome.trained:
            paired = on_cpu(plan, base)
            self._walker.ensure([*paired, *early_evaluations(plan, ends, outcome.results, bool(paired))])
        add_packing(plan, handed_on(plan, outcome.results), ends[base])
        self._walker.ensure(["package"])
        return outcome

    def _leave_out(self) -> None:
        """Takes the candidates that are left out from the measuring steps; what speed is compared with is then
        another of full precision, where it is the baseline.
        """
        plan, out = self._plan, self._outcome.left_out
        left = [name for name in plan.config.candidates if name not in out]
        full = [name for name in left if plan.candidates[name].spec.precision == "fp32"]
        for name in (*BRIEF, "benchmark") if out and left else ():
            step = plan.steps.get(name)
            if step is None:
                continue
            stage = step.stage
            if plan.config.baseline in out:
                stage = dataclasses.replace(stage, baseline=(full or left)[0])  # type: ignore[call-arg]
            inputs = {r: s for r, s in step.inputs.items() if r.removeprefix("candidate/") not in out}
            plan.steps[name] = dataclasses.replace(step, stage=stage, inputs=inputs)

    def _read_claim(self) -> None:
        """Whether the weights are trained for this data, from the signature of what the baseline runs."""
        outcome, plan = self._outcome, self._plan
        baseline = plan.candidates[plan.config.baseline]
        signature = json.loads((outcome.results[baseline.result].path / SIGNATURE).read_text())
        outcome.trained, outcome.claim, outcome.demo = signature["trained"], signature["claim"], signature["demo"]
        outcome.weight_notes = signature.get("notes", [])

    def make(self, names: list[str]) -> Outcome:
        """Makes the results of the steps `names` and of what they need, and nothing else.

        Raises:
            CompilerError: a step failed.
        """
        self._walker.ensure(names)
        for name in names:
            if name in self._outcome.failures:
                raise self._outcome.failures[name]
        return self._outcome

    def _evaluate(self, measured: str) -> None:
        """Runs the evaluations that selection asks for, given the figures of the step `measured`."""
        while wanted := demand(self._evidence(measured)):
            self._walker.ensure([evaluation_name(split, name) for split, name in wanted])

    def _confirm(self, first: str) -> None:
        """Measures the contenders in depth; again with more of them where their accuracy makes others contend."""
        step = self._plan.steps["benchmark"]
        wanted = set(contenders(self._evidence(first)))
        confirmed: set[str] = set()
        while not confirmed or wanted - confirmed:
            confirmed |= wanted | {step.stage.baseline}  # type: ignore[attr-defined]
            inputs = {
                role: source
                for role, source in step.inputs.items()
                if not role.startswith("candidate/") or role.removeprefix("candidate/") in confirmed
            }
            self._plan.steps["benchmark"] = dataclasses.replace(step, inputs=inputs)
            self._outcome.results.pop("benchmark", None)
            self._walker.ensure(["benchmark"])
            self._evaluate("benchmark")
            wanted = set(contenders(self._evidence("benchmark")))

    def _select(self) -> None:
        step = self._plan.steps["select"]
        known = {
            f"{split}/{name}": evaluation_name(split, name)
            for split in ("selection", "report")
            for name in self._plan.candidates
            if evaluation_name(split, name) in self._outcome.results
        }
        stage = dataclasses.replace(step.stage, trained=self._outcome.trained)  # type: ignore[call-arg]
        self._plan.steps["select"] = dataclasses.replace(step, stage=stage, inputs={**step.inputs, **known})
        self._walker.ensure(["select"])
        self._outcome.decision = self._outcome.facts("select")

    def _package(self) -> None:
        chosen = self._outcome.decision["selected"]
        if chosen is None:
            failed = [f"{name}: {why}" for name, why in self._outcome.facts("benchmark")["failed"].items()]
            raise StepError("no candidate could be measured", fix="see the details above", details=failed)
        step = self._plan.steps["package"]
        candidate = self._plan.candidates[chosen]
        stage = dataclasses.replace(step.stage, artifact=candidate.spec.artifact)  # type: ignore[call-arg]
        extra = {"calibrate": "calibrate"} if "calibrate" in self._outcome.results else {}
        self._plan.steps["package"] = dataclasses.replace(
            step, stage=stage, inputs={**step.inputs, "model": candidate.result, **extra}
        )
        self._walker.ensure(["package"])
        if not self._store.verify_fully(self._outcome.results["package"]):
            del self._outcome.results["package"]  # what is delivered was read in full, whatever was remembered of it
            self._walker.ensure(["package"])

    def _evidence(self, measured: str) -> Evidence:
        """What is known, with the latencies that the step `measured` took."""
        config = self._plan.config
        evaluations: dict[str, dict[str, Any]] = {"selection": {}, "report": {}}
        for split, known in evaluations.items():
            for name in self._plan.candidates:
                if evaluation_name(split, name) in self._outcome.results:
                    known[name] = self._outcome.facts(evaluation_name(split, name))
        return Evidence(
            budget=plain(config.budget),  # type: ignore[arg-type]
            objective=config.objective,
            baseline=config.baseline,
            trained=self._outcome.trained,
            evaluate_all=config.evaluate == "all",
            benchmark=self._outcome.facts(measured),
            evaluations=evaluations,
        )

    def _check_any_left(self, names: list[str], ends: Mapping[str, str] | None = None) -> None:
        """That the step of at least one of the candidates `names` was made: its last, or the one in `ends`."""
        results = self._outcome.results
        made = {name: (ends or {}).get(name, self._plan.candidates[name].result) in results for name in names}
        if any(made[name] for name in names if name not in self._outcome.left_out):
            return
        failed = [error for name, error in self._outcome.failures.items() if name in self._outcome.records]
        last = failed[-1]  # not one that was only left out for it: that says nothing about why
        raise StepError(f"every candidate failed; the last: {last.what}", fix=last.fix, details=last.details)
