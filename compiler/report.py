"""A manifest as a table for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

MEGABYTE = 1e6
STYLE = {
    "selected": "bold green",
    "rejected": "yellow",
    "failed": "red",
    "pass": "green",
    "fail": "red",
    "unproven": "yellow",
}
NONE = "-"


def print_manifest(manifest: dict[str, Any], folder: Path, console: Console | None = None) -> None:
    """Prints the candidates, the verdicts, what was selected and why, and where it lies."""
    manifest = _printable(manifest)
    console = console or Console(markup=False, emoji=False)
    if not console.is_terminal:  # a pipe has no width: never fold a table for it
        console = Console(file=console.file, width=200, no_color=True, highlight=False, markup=False, emoji=False)
    host = manifest["measured_on"][0]
    proxy = not host["is_target"]
    table = Table(title=f"{manifest['model']} for {manifest['target']}", title_justify="left", pad_edge=False)
    table.add_column("candidate")
    for name in (
        "size MB",
        "p50 ms (proxy)" if proxy else "p50 ms",
        "95 % interval",
        "p95 ms",
        "speed-up",
        "top-1 %",
        "drop (interval)",
    ):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for row in sorted(manifest["candidates"], key=_speed):
        style = STYLE.get(row["status"], "dim" if row["status"] == "skipped" else "")
        verdict = "baseline" if row["id"] == manifest["baseline"] else row["status"]
        table.add_row(row["id"], *_figures(row), verdict, style=style)
    console.print(table)
    if proxy:
        console.print(
            f"Latency is a proxy: measured on {host['cpu_model']} ({host['arch']}, {host['cores']} cores), not on "
            f"{manifest['target']}. It ranks the candidates; what the target itself needs is unproven.",
            style="yellow",
        )
    for row in manifest["candidates"]:
        if row["status"] in ("rejected", "failed"):
            console.print(
                Text(f"{row['status'].capitalize()}: {row['id']}: {row['reason']}", STYLE[row["status"]]),
                soft_wrap=True,
            )
        if row["latency_ms"] and not row["latency_ms"]["stable"]:
            console.print(f"Unstable: {row['id']}: {'; '.join(row['latency_ms']['unstable_reasons'])}.", style="yellow")
    for verdict in manifest["verdicts"]:
        bound = f" (budget {verdict['bound']:g})" if verdict["bound"] is not None else ""
        value = NONE if verdict["value"] is None else f"{verdict['value']:.4g}"
        line = Text(f"{verdict['metric']}: {value}{bound} ")
        line.append(verdict["result"], STYLE[verdict["result"]])
        console.print(line + Text(f"  {verdict['reason']}", "dim"))
    if manifest["weights"]["demo"]:
        console.print(
            "Demo weights, trained on scikit-learn's digits. Build your own: python -m compiler "
            f"target={manifest['target']} model={manifest['model']} model.weights=WEIGHTS.safetensors "
            "model.sha256=null data=imagefolder data.root=IMAGES"
        )
    elif manifest["weights"]["claim"]:
        console.print(Text(f"Accuracy: {manifest['weights']['claim']}.", "yellow"))
    console.print(f"Selected: {manifest['selected']}: {manifest['selected_because']}")
    console.print(f"Status: {manifest['status']}")
    for file in manifest["files"]:
        if file["role"] in ("model", "weights"):
            console.print(
                f"{file['role'].capitalize()}: {folder / file['path']} ({file['size_bytes'] / MEGABYTE:.2f} MB)",
                soft_wrap=True,
            )


def _printable(value: Any) -> Any:
    """A copy without control characters: a manifest is data and must not steer the terminal."""
    if isinstance(value, dict):
        return {name: _printable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return "".join(c if c.isprintable() else "?" for c in value) if isinstance(value, str) else value


def _speed(row: dict[str, Any]) -> tuple[float, str]:
    return (-row["speedup"] if row["speedup"] else 0.0, row["id"])


def _figures(row: dict[str, Any]) -> list[str]:
    latency, accuracy = row["latency_ms"], row["accuracy"]
    cells = [f"{row['size_bytes'] / MEGABYTE:.2f}" if row["size_bytes"] else NONE]
    if latency:
        low, high = latency["ci95"]
        cells += [
            f"{latency['p50']:.3f}{'' if latency['stable'] else ' ~'}",
            f"{low:.3f}-{high:.3f}",
            f"{latency['p95']:.3f}",
        ]
        interval = row["speedup_ci95"]
        cells.append(f"{row['speedup']:.2f}x" + (f" ({interval[0]:.2f}-{interval[1]:.2f})" if interval else ""))
    else:
        cells += [NONE] * 4
    if accuracy:
        ends = accuracy["drop_ci95"]
        cells += [
            f"{accuracy['value']:.2f}" + ("" if accuracy["split"] == "report" else " (selection)"),
            f"{accuracy['drop']:.2f}" + (f" ({ends[0]:.2f} to {ends[1]:.2f})" if ends else ""),
        ]
    else:
        cells += [NONE, NONE]
    return cells
