"""What keeps a finished version from being delivered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compiler.errors import CompilerError, GateError, StepError


def gate(strict: bool, manifest: dict[str, Any], folder: Path) -> CompilerError | None:
    """What keeps the artifact from being delivered, if anything does."""
    failed = [v for v in manifest["verdicts"] if v["result"] == "fail"]
    lost = [c["id"] for c in manifest["candidates"] if c["status"] == "failed"]
    where = f"the artifact is at {folder}"
    if failed:
        what = "; ".join(
            f"{v['metric']} {v['value']} against {v['bound']}" if v["bound"] is not None else v["reason"]
            for v in failed
        )
        return GateError(
            f"the budget is not met: {what}; nearest candidate: {manifest['selected']}",
            fix=f"{where}; relax the budget, add candidates, or build a smaller model",
        )
    if not strict:
        return None
    unproven = [v for v in manifest["verdicts"] if v["result"] == "unproven"]
    if lost:
        see = f"see their reasons: python -m compiler show {folder}"
        return StepError(f"candidates failed under strict=true: {', '.join(lost)}", fix=f"{where}; {see}")
    if unproven:
        return GateError(
            f"unproven under strict=true: {', '.join(v['metric'] for v in unproven)} ({unproven[0]['reason']})",
            fix=f"{where}; what each needs to be proven: python -m compiler show {folder}",
        )
    return None
