"""A manifest as plain text, for hosts that have numpy and a runtime and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compiler import sentences
from compiler.words import printable


def lines(manifest: dict[str, Any], folder: Path) -> list[str]:
    """The candidates as aligned columns, the verdicts, what was selected and why, and where it lies."""
    manifest = printable(manifest)
    table = [["candidate", *sentences.columns(manifest), "verdict"]]
    for row in sorted(manifest["candidates"], key=sentences.by_speed):
        table.append([row["id"], *sentences.cells(row, manifest), sentences.standing(row, manifest)])
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    found = [f"{manifest['model']} for {manifest['target']}"]
    found += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    rows = [(row["id"], row) for row in manifest["candidates"]]
    found += [
        *sentences.loads(manifest),
        *sentences.on_gpu(manifest),
        *sentences.whole_call(manifest),
        *sentences.data(manifest),
        sentences.screened(manifest),
        sentences.reference(manifest),
    ]
    found += [*sentences.undecided(manifest), sentences.proxy(manifest), *sentences.unstable(rows)]
    found += [line for _, line in sentences.turned_down(manifest)]
    for verdict in manifest["verdicts"]:
        value, bound = sentences.figure(verdict)
        asked = f" (budget {bound})" if bound else ""
        found.append(f"{verdict['metric']}: {value}{asked} {verdict['result']}  {verdict['reason']}")
    found += [sentences.weights(manifest), *sentences.deferred(manifest, str(folder))]
    found.append(f"Selected: {manifest['selected'] or 'none'}: {manifest['selected_because']}")
    found.append(f"Status: {manifest['status']}")
    return [line for line in found if line]
