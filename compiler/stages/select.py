"""Select: the best candidate within the budget, from what was measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from compiler.selection import Evidence, decide
from compiler.stage import Stage, read_facts, write_json


@dataclasses.dataclass(kw_only=True)
class Select(Stage):
    """Writes `decision.json`. Inputs: `benchmark`, and `<split>/<candidate>` for each evaluation that was asked for."""

    inputs: ClassVar[Mapping[str, str]] = {"benchmark": "benchmark"}

    budget: dict[str, Any]
    objective: str
    baseline: str
    trained: bool
    evaluate: str = "on_demand"

    def run(self, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
        """See `Stage.run`."""
        evaluations: dict[str, dict[str, Any]] = {"selection": {}, "report": {}}
        for role, path in inputs.items():
            split, _, candidate = role.partition("/")
            if split in evaluations:
                evaluations[split][candidate] = read_facts(path)
        evidence = Evidence(
            budget=self.budget, objective=self.objective, baseline=self.baseline, trained=self.trained,
            evaluate_all=self.evaluate == "all", benchmark=read_facts(inputs["benchmark"]), evaluations=evaluations,
        )  # fmt: skip
        decision = decide(evidence)
        write_json(out / "decision.json", decision)
        return decision
