"""What a build needs, in which order, and what the outcome of one step means for the next."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from compiler.canonical import plain
from compiler.conversion import SIGNATURE
from compiler.errors import StepError
from compiler.identity import KeyMaker
from compiler.outcome import Outcome, Watcher
from compiler.plan import BRIEF, Plan, evaluation_name
from compiler.selection import Evidence, contenders, demand
from compiler.store import Store
from compiler.walker import Walker


class Runner:
    """Runs one plan."""

    def __init__(self, plan: Plan, store: Store, keys: KeyMaker, watcher: Watcher) -> None:
        self._plan = plan
        self._store = store
        self._walker = Walker(plan, store, keys, watcher)
        self._outcome = self._walker.outcome

    def run(self) -> Outcome:
        """Runs what a build needs, evaluations only as far as selection asks for them.

        Raises:
            CompilerError: a step that everything depends on failed, or no candidate is left.
        """
        outcome, plan = self._outcome, self._plan
        first = next((name for name in BRIEF if name in plan.steps), "benchmark")
        self._walker.ensure([first])
        self._check_any_left()
        baseline = plan.candidates[plan.config.baseline]
        signature = json.loads((outcome.results[baseline.result].path / SIGNATURE).read_text())
        outcome.trained, outcome.claim, outcome.demo = signature["trained"], signature["claim"], signature["demo"]
        self._evaluate(first)
        if first != "benchmark":
            self._confirm(first)
        self._select()
        self._package()
        return outcome

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
            confirmed |= wanted | {self._plan.config.baseline}
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

    def _check_any_left(self) -> None:
        config = self._plan.config
        if any(self._plan.candidates[name].result in self._outcome.results for name in config.candidates):
            return
        failed = [error for name, error in self._outcome.failures.items() if name in self._outcome.records]
        last = failed[-1]  # not one that was only left out for it: that says nothing about why
        raise StepError(f"every candidate failed; the last: {last.what}", fix=last.fix, details=last.details)
