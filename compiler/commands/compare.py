"""compare: two versions side by side; marks a difference only where the 95 % intervals part.

    python -m compiler compare A B
    python -m compiler compare --baseline REF NEW --fail-on=latency,accuracy,size,memory [--strict] [--measure]

Latency and memory compare only between figures from hosts of the same fingerprint with the same threads and batch, and
latency only between stable ones; accuracy only on the same samples by the same metric. What does not compare is
said to be so, and why. --measure races both in the same rounds on this host, which is what finds a few percent. With
--fail-on the exit code is 3 where NEW is worse than REF: a median latency more than 2 %
higher with an interval that parts from REF's, an accuracy lower with one that parts, a size more than 1 % larger,
memory more than 10 % more.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from compiler import comparison, terminal
from compiler.commands.arguments import parser
from compiler.comparison import GATES, Row
from compiler.errors import ConfigError, GateError, IntegrityError, StepError, unknown_name
from compiler.figures import Interval, Side, read_side
from compiler.rounding import ends, supported
from compiler.runtime.verify import read_manifest

NONE = "-"
NO_MANIFEST = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, StopIteration)
DIGITS = {"ms": 3, "MB": 2, "%": 2, "points": 2, "x": 2, "1/s": 1}
STYLE = {"better": "green", "worse": "red", "different": "cyan", "not_comparable": "yellow", "same": "dim"}


def run(arguments: list[str]) -> int:
    """Prints the comparison of B (or NEW) against A (or REF).

    Raises:
        GateError: it is worse by one of --fail-on; with --strict also where that is not proven.
    """
    options = parser("compare", __doc__ or "")
    options.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="a version's folder, .../latest, or a manifest.json"
    )
    options.add_argument("--baseline", type=Path, metavar="REF", help="what the one PATH is compared against")
    options.add_argument("--fail-on", metavar="NAMES", help=f"exit 3 where it is worse: any of {','.join(GATES)}")
    options.add_argument("--measure", action="store_true", help="measure both together here: what always compares")
    options.add_argument("--samples", type=Path, help="with --measure: .npy of images, where the build's are not here")
    options.add_argument("--strict", action="store_true", help="what is not comparable fails a gate as well")
    options.add_argument("--json", action="store_true", help="print nothing but JSON")
    given = options.parse_args(arguments)
    gates = _gates(given.fail_on)
    if given.strict and not gates:
        raise ConfigError("--strict is about gates, and --fail-on names none", fix="add --fail-on=latency,accuracy")
    paths = [given.baseline, *given.paths] if given.baseline else given.paths
    if len(paths) != 2:
        raise ConfigError(
            f"compare takes two versions, not {len(paths)}", fix="compare A B, or compare --baseline REF NEW"
        )
    first, second = (_side(path) for path in paths)
    rows, notes = comparison.compare(first, second)
    if given.measure:
        rows, notes = comparison.measured_together(rows, _measure(paths[0], paths[1], given.samples)), []
    findings = comparison.judge(rows, gates)
    if given.json:
        record = {
            "a": {"path": str(paths[0]), **first.identity},
            "b": {"path": str(paths[1]), **second.identity},
            "rows": [dataclasses.asdict(row) for row in rows],
            "notes": notes,
            "gates": findings,
        }
        print(json.dumps(record, indent=1))
    else:
        _print(first, second, rows, notes)
    _gate(findings, given.strict, paths[0])
    return 0


def _measure(first: Path, second: Path, samples: Path | None) -> dict[str, Any]:
    """Both artifacts in the same rounds, on this host."""
    import tempfile

    from compiler.observations import pair_bundle
    from compiler.progress import watcher
    from compiler.runtime.measure import measure
    from compiler.turns import turn

    with (
        pair_bundle(first, second, samples) as bundle,
        tempfile.TemporaryDirectory(prefix="measured-") as out,
        watcher() as watching,
    ):
        watching.planned(1)
        watching.started("measure", "both together")
        began = time.monotonic()
        with turn(True, watching.note):
            result = measure(bundle, Path(out), lambda d, t, what: watching.progressed("measure", d, t, what))
        watching.ended("measure", "executed", time.monotonic() - began)
    for name in ("A", "B"):
        if name not in result["candidates"]:
            why = {**result["failed"], **result["absent"]}.get(name, "")
            raise StepError(f"{name} could not be measured: {why}", fix="compare without --measure")
    return result


def _gates(text: str | None) -> list[str]:
    if text is None:
        return []
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in GATES:
            raise unknown_name("gate", name, GATES)
    return list(dict.fromkeys(names))


def _side(path: Path) -> Side:
    folder, manifest = read_manifest(path)
    try:
        return read_side(manifest)
    except NO_MANIFEST as error:
        raise IntegrityError(
            f"{folder}/manifest.json is not a manifest ({error!r})"[:300], fix="fetch or build it again"
        ) from None


def _gate(findings: list[dict[str, str]], strict: bool, reference: Path) -> None:
    failed = [f"{f['gate']}: {f['reason']}" for f in findings if f["result"] == "fail"]
    unproven = [f"{f['gate']}: {f['reason']}" for f in findings if f["result"] == "unproven"]
    for line in unproven:
        print(f"warning: {line}; this gate is unproven", file=sys.stderr)
    if failed or (strict and unproven):
        sentence = f"worse than {reference}: {'; '.join(failed)}" if failed else f"unproven: {'; '.join(unproven)}"
        raise GateError(
            sentence,
            fix="see the comparison above; leave a name out of --fail-on to allow it"
            if failed
            else "build both on one idle host, or leave --strict out",
        )


def _print(first: Side, second: Side, rows: list[Row], notes: list[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    console = terminal.console()
    table = Table(pad_edge=False)
    for title in ("", "A", "B"):
        table.add_column(title, justify="left" if not title else "right")
    table.add_column("B against A")
    for key in ("model", "target", "version", "id", "precision", "status"):
        one, two = first.identity[key], second.identity[key]
        table.add_row("candidate" if key == "id" else key, one, two, "" if one == two else Text("different", "cyan"))
    for row in rows:
        label = f"{row.name} {row.unit}" if row.unit in DIGITS else row.name
        cells = _cell(row.a, row.unit, row.a_ci95), _cell(row.b, row.unit, row.b_ci95)
        table.add_row(label, *cells, Text(row.note, STYLE.get(row.verdict, "")))
    console.print(table)
    for note in notes:
        console.print(Text(f"Note: {note}.", "yellow"), soft_wrap=True)


def _cell(value: Any, unit: str, interval: Interval | None) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name}: {v:,} B" if unit == "bytes" else f"{name}={v}" for name, v in value.items())
    if value is None:
        return NONE
    digits = DIGITS[unit]
    if not interval:
        return f"{value:.{digits}f}"
    low, high = interval
    return f"{supported(value, low, high, digits)} ({' to '.join(ends(low, high, digits))})"
